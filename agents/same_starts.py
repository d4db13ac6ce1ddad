"""python -m agents.same_starts --world car-racing --policy driver: one policy in the dream and in reality.

Each pair of episodes begins with the same frames and actions of the real env, from a seed that no training data were
recorded from; from there on one is played and the other dreamed, each by its own copy of the policy. Writes what both
paid (same_starts.json) and pictures of the first pairs, reality above the dream (same_starts.png).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

from agents.policies import Policy, make_policy
from agents.score import measured
from inferix_env.env import WorldSimEnv
from inferix_env.real import RealEnv, real_env
from inferix_env.record import write_sheet, write_text

COLUMNS = 12
"""Pictures of an episode on the sheet."""


@dataclass(frozen=True)
class Settings:
    """Compare a dream with reality by what a policy earns in both.

    Attributes:
        world: a world's name or folder.
        policy: random, sticky, script:..., driver, trained, ... (see agents.policies).
        episodes: how many pairs.
        seed: of the first pair; each further one takes the next. Training data end at 10,000.
        given: real frames that both begin with.
        max_steps: a pair is cut there.
        pictures: pairs to draw.
        out: the folder to write.
    """

    world: str = "car-racing"
    policy: str = "driver"
    episodes: int = 10
    seed: int = 30_000
    given: int = 4
    max_steps: int = 234
    pictures: int = 3
    out: Path = Path("out/same_starts")


@dataclass(frozen=True)
class Half:
    """One side of a pair after their common beginning: what it paid each step, its frames, whether it ended itself."""

    rewards: np.ndarray
    frames: np.ndarray
    ended: bool


def play_on(env: gym.Env, policy: Policy, frame: np.ndarray, max_steps: int) -> Half:
    """Play from a frame, until the episode is over or `max_steps` are done."""
    rewards, frames, over, terminated = [], [frame], False, False
    while not over and len(rewards) < max_steps:
        frame, reward, terminated, truncated, _ = env.step(policy(frame))
        rewards.append(float(reward))
        frames.append(frame)
        over = terminated or truncated
    return Half(np.array(rewards), np.stack(frames), bool(terminated))


def begin(real: RealEnv, policy: Policy, seed: int, given: int) -> tuple[list[np.ndarray], list[Any], dict[str, Any]]:
    """The first frames of a real episode, the actions between them, and its variables at each, by name.

    Raises:
        ValueError: the episode is over before that.
    """
    policy.reset(seed)
    frame, info = real.reset(seed=seed)
    frames, actions, infos = [frame], [], [info]
    for _ in range(given - 1):
        actions.append(policy(frames[-1]))
        frame, _, terminated, truncated, info = real.step(actions[-1])
        frames.append(frame)
        infos.append(info)
        if terminated or truncated:
            raise ValueError(f"the episode of seed {seed} ends within --given {given} frames: give fewer")
    return frames, actions, {name: [x["variables"][name] for x in infos] for name in info["variables"]}


def play_pair(dream: WorldSimEnv, real: RealEnv, policy: Policy, seed: int, settings: Settings) -> tuple[Half, Half]:
    """(reality, dream) from the same beginning."""
    frames, actions, variables = begin(real, policy, seed, settings.given)
    options = {"frames": np.stack(frames), "actions": actions}
    frame, _ = dream.reset(seed=seed, options=options | ({"variables": variables} if variables else {}))
    twin = copy.deepcopy(policy)
    return play_on(real, policy, frames[-1], settings.max_steps), play_on(dream, twin, frame, settings.max_steps)


def strip(half: Half, num_steps: int) -> np.ndarray:
    """`COLUMNS` frames evenly over `num_steps`, black after an end, uint8 [COLUMNS, H, W, 3]."""
    rows = np.linspace(0, num_steps, COLUMNS).astype(int)
    shown = half.frames[np.minimum(rows, len(half.frames) - 1)].copy()
    shown[rows >= len(half.frames)] = 0
    return shown


def row_of(seed: int, real: Half, dreamed: Half) -> dict[str, Any]:
    """A pair in numbers; over the steps that both lasted, too, where one ended first."""
    both = min(len(real.rewards), len(dreamed.rewards))
    row: dict[str, Any] = {"seed": seed, "steps_of_both": both}
    for name, half in (("real", real), ("dream", dreamed)):
        row[name] = {"return": half.rewards.sum(), "steps": len(half.rewards), "ended": half.ended}
        row[name]["return_of_both"] = half.rewards[:both].sum()
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over pairs, and how well a dream tells which episodes pay (None for fewer than 3 pairs)."""
    totals = {side: np.array([row[side]["return"] for row in rows]) for side in ("real", "dream")}
    told = len(rows) > 2 and min(x.std() for x in totals.values()) > 0
    return {
        **{side: measured(total) for side, total in totals.items()},
        "ended": {side: sum(row[side]["ended"] for row in rows) for side in totals},
        "correlation": round(float(np.corrcoef(totals["real"], totals["dream"])[0, 1]), 3) if told else None,
    }


def compare(settings: Settings) -> dict[str, Any]:
    """Play all pairs, write the folder, and return the summary.

    Raises:
        ValueError: a setting names nothing there is, or cannot be.
    """
    if min(settings.episodes, settings.given, settings.max_steps) < 1 or min(settings.seed, settings.pictures) < 0:
        raise ValueError("--episodes, --given and --max-steps must be at least 1, --seed and --pictures at least 0")
    dream, real = WorldSimEnv(world=settings.world), real_env(settings.world)
    rows, strips = [], []
    try:
        policy = make_policy(settings.policy, real, world=settings.world)
        for seed in tqdm(range(settings.seed, settings.seed + settings.episodes), unit="pair", disable=None):
            halves = play_pair(dream, real, policy, seed, settings)
            rows.append(row_of(seed, *halves))
            if len(strips) < 2 * settings.pictures:
                strips += [strip(half, max(len(h.rewards) for h in halves)) for half in halves]
    finally:
        dream.close()
        real.close()
    result = {"world": settings.world, "policy": settings.policy, "given": settings.given, **summary(rows)}
    settings.out.mkdir(parents=True, exist_ok=True)
    write_text(settings.out / "same_starts.json", json.dumps({**result, "pairs": rows}, indent=1) + "\n")
    if strips:
        write_sheet(settings.out / "same_starts.png", np.concatenate(strips), COLUMNS)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting, 130 for Ctrl-C."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m agents.same_starts", description=__doc__)
    try:
        print(json.dumps(compare(settings), indent=1))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
