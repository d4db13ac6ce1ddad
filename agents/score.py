"""python -m agents.score --policy trained --world doom-take-cover: how well a policy does in the real env.

Plays episodes from consecutive seeds that no training data were recorded from, and says what they paid, how long they
were, and what they come to in game tics. `--dream` asks the same of the world.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

from agents.policies import Policy, make_policy
from inferix_env.env import WorldSimEnv
from inferix_env.real import real_env
from inferix_env.record import write_text


@dataclass(frozen=True)
class Life:
    """One episode: its seed, what it paid, its steps, and whether it ended or was cut."""

    seed: int
    total: float
    steps: int
    ended: bool


@dataclass(frozen=True)
class Settings:
    """Score a policy.

    Attributes:
        policy: random, sticky, script:..., trained, trained:PATH (see agents.policies).
        world: a world's name or folder: its real env is played.
        dream: play the world itself instead.
        episodes: how many.
        seed: of the first episode; each further one takes the next. Training data end at 10,000.
        max_steps: an episode is cut there.
        greedy: a trained policy takes its likeliest action, or draws one; by default as its card says.
        out: a JSON file to write.
    """

    policy: str = "trained"
    world: str = "doom-take-cover"
    dream: bool = False
    episodes: int = 100
    seed: int = 30_000
    max_steps: int = 525
    greedy: bool | None = None
    out: Path | None = None


def play_episodes(env: gym.Env, policy: Policy, seeds: Iterable[int], title: str) -> list[Life]:
    """Play one episode from each seed."""
    lives = []
    for seed in tqdm(seeds, desc=title, unit="episode", leave=False, disable=None):
        policy.reset(seed)
        observation, _ = env.reset(seed=seed)
        total, steps, over, terminated = 0.0, 0, False, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        lives.append(Life(seed, total, steps, bool(terminated)))
    return lives


def summary(lives: Sequence[Life], tics: int) -> dict[str, Any]:
    """Means over episodes, with standard deviations and standard errors, in steps and in tics of the game."""
    steps, totals = np.array([life.steps for life in lives]), np.array([life.total for life in lives])
    return {
        "episodes": len(lives),
        "first_seed": lives[0].seed,
        "tics": measured(steps * tics),
        "steps": measured(steps),
        "return": measured(totals),
        "cut": sum(not life.ended for life in lives),
    }


def measured(values: np.ndarray) -> dict[str, float]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    named = {"mean": float(values.mean()), "std": spread, "error": spread / len(values) ** 0.5}
    return {name: round(x, 2) for name, x in named.items()} | {"median": float(np.median(values))}


def score(settings: Settings) -> dict[str, Any]:
    """Play and sum up.

    Raises:
        ValueError: a setting names nothing there is.
    """
    if settings.episodes < 1 or settings.max_steps < 2 or settings.seed < 0:
        raise ValueError("--episodes must be at least 1, --max-steps at least 2, --seed at least 0")
    make = WorldSimEnv if settings.dream else real_env
    env: Any = make(world=settings.world, max_episode_steps=settings.max_steps)
    try:
        policy = make_policy(settings.policy, env, world=settings.world, greedy=settings.greedy)
        started = time.perf_counter()
        seeds = range(settings.seed, settings.seed + settings.episodes)
        lives = play_episodes(env, policy, seeds, "dreamed episodes" if settings.dream else "real episodes")
        seconds = time.perf_counter() - started
    finally:
        env.close()
    held = env.frame_skip if hasattr(env, "frame_skip") else frame_skip_of(env)
    made = {"policy": settings.policy, "world": settings.world, "where": "dream" if settings.dream else "real"}
    rate = sum(life.steps for life in lives) / seconds
    return {
        **made,
        "greedy": getattr(policy, "greedy", None),
        **summary(lives, held),
        "steps_per_second": round(rate, 1),
    }


def frame_skip_of(env: WorldSimEnv) -> int:
    """Steps of the real env that a step of its world stands for."""
    return int(env.card.get("data", {}).get("frame_skip", 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting, 130 for Ctrl-C."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m agents.score", description=__doc__)
    try:
        text = json.dumps(score(settings), indent=1)
        if settings.out is not None:
            write_text(settings.out, text + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
