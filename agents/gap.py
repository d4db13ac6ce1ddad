"""python -m agents.gap --policy trained --guard latent --bounds 1.5 2: does a guard narrow the gap to reality?

A policy plays the dream from openings, its guard read at every step and cutting nothing, and the real env. What a step
pays, how likely it ends the episode and how it moves the named variables is compared, real steps weighed by the ages
that the dreamed ones have: once over all dreamed steps, and for each bound over those that a guard would have let
happen. In the dream ends and changes count by what the world expects, in reality by what came. 95 % intervals by
drawing episodes of both again. Writes gap.json.

Legend: S steps, one row each, of all episodes one after another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

from agents.policies import Policy, make_policy
from inferix_env.real import real_env
from inferix_env.record import write_text
from inferix_env.vector import WorldSimVectorEnv


@dataclass(frozen=True)
class Settings:
    """Measure the gap with and without a guard.

    Attributes:
        world: a world's name or folder.
        policy: see agents.policies.
        guard: the signal, see inferix_env.guard.
        bounds: above which it would cut an episode.
        worlds: dreamt side by side.
        steps: dreamed in each.
        episodes: real ones.
        max_steps: an episode is cut there, in the dream and in reality.
        span: steps of age that are compared as one.
        seed: of the first episode; training data end at 10,000.
        draws: of episodes, for the intervals.
        out: the folder to write.
    """

    world: str = "doom-take-cover"
    policy: str = "trained"
    guard: str = "latent"
    bounds: tuple[float, ...] = (1.5, 2.0, 2.5)
    worlds: int = 16
    steps: int = 300
    episodes: int = 60
    max_steps: int = 300
    span: int = 25
    seed: int = 32_000
    draws: int = 1_000
    out: Path = Path("out/gap")

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        counts = ("worlds", "steps", "episodes", "max_steps", "span", "draws")
        wrong = [f"--{name.replace('_', '-')} {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if wrong or not self.bounds or min(self.bounds) <= 0 or self.seed < 0:
            raise ValueError(
                f"{', '.join(wrong) or 'bounds, seed'}: expected every count from 1, bounds above 0, seed from 0"
            )


@dataclass(frozen=True)
class Steps:
    """S steps: the episode of each, its age, a guard's signal (0 in reality), and by name what it was worth."""

    episode: np.ndarray
    age: np.ndarray
    signal: np.ndarray
    values: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows: Sequence[dict[str, float]]) -> Steps:
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        episode, age, signal = (columns.pop(name) for name in ("episode", "age", "signal"))
        return cls(episode.astype(np.int64), age.astype(np.int64), signal, columns)

    def trusted(self, bound: float) -> np.ndarray:
        """Whether each step would have happened with a guard: none before it in its episode lies above the bound."""
        first = np.full(self.episode.max() + 1, np.inf)
        over = self.signal > bound
        np.minimum.at(first, self.episode[over], self.age[over])
        return self.age <= first[self.episode]


def played(settings: Settings) -> tuple[Steps, Steps]:
    """Both, opened before either is played: what one of them lacks is said at once."""
    options: dict[str, Any] = {"world": settings.world, "guard": settings.guard, "autoreset_mode": "Disabled"}
    options |= {"deterministic": False, "max_episode_steps": settings.max_steps}
    with (
        closing(real_env(settings.world, max_episode_steps=settings.max_steps)) as real,
        closing(WorldSimVectorEnv(settings.worlds, **options)) as envs,
    ):
        policies = [make_policy(settings.policy, real, settings.world) for _ in range(settings.worlds)]
        return dreamed(envs, policies, settings), lived(real, policies[0], settings)


def dreamed(envs: WorldSimVectorEnv, policies: Sequence[Policy], settings: Settings) -> Steps:
    """A policy in dreams; when an episode is over, its world begins another."""
    episodes, rows = np.arange(settings.worlds), []
    observations, infos = envs.reset(seed=settings.seed)
    for policy, episode in zip(policies, episodes, strict=True):
        policy.reset(settings.seed + int(episode))
    ages, before = np.zeros(settings.worlds, np.int64), named(infos["variables"])
    for _ in tqdm(range(settings.steps), desc="dreamed", unit="step", leave=False, disable=None):
        actions = [policy(frame) for policy, frame in zip(policies, observations, strict=True)]
        observations, rewards, terminated, truncated, infos = envs.step(np.stack(actions))
        ages += 1
        expected, now, signal = named(infos["expected_variables"]), named(infos["variables"]), infos["uncertainty"]
        for i in range(settings.worlds):
            row = {"episode": episodes[i], "age": ages[i], "signal": signal[settings.guard][i], "reward": rewards[i]}
            changes = {name: expected[name][i] - before[name][i] for name in now}
            rows.append({**row, "end": infos["end_probability"][i], **changes})
        over = terminated | truncated
        before = now
        if over.any():
            observations, infos = envs.reset(options={"reset_mask": over})
            before = {name: np.where(over, column, now[name]) for name, column in named(infos["variables"]).items()}
            episodes[over] = episodes.max() + 1 + np.arange(over.sum())
            ages[over] = 0
            for i in np.flatnonzero(over):
                policies[i].reset(settings.seed + int(episodes[i]))
    return Steps.of(rows)


def named(columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns of a vector env's info, without their masks."""
    return {name: np.array(column) for name, column in columns.items() if not name.startswith("_")}


def lived(env: gym.Env, policy: Policy, settings: Settings) -> Steps:
    """A policy in the real env. The last step of an episode moves no variable: behind an end none is read."""
    rows = []
    for episode in tqdm(range(settings.episodes), desc="real", unit="episode", leave=False, disable=None):
        policy.reset(settings.seed + episode)
        frame, info = env.reset(seed=settings.seed + episode)
        before, age, over = info["variables"], 0, False
        while not over:
            frame, reward, terminated, truncated, info = env.step(policy(frame))
            now, age, over = info["variables"], age + 1, terminated or truncated
            changes = {name: 0.0 if terminated else now[name] - before[name] for name in now}
            row = {"episode": episode, "age": age, "signal": 0.0, "reward": float(reward), "end": float(terminated)}
            rows.append({**row, **changes})
            before = now
    return Steps.of(rows)


def means(dream: Steps, real: Steps, kept: np.ndarray, weights: Sequence[np.ndarray], span: int) -> np.ndarray:
    """Of every shared value, what a kept dreamed step has on average, and a real one of the same age, [2, values].

    Args:
        kept: bool [S], of the dreamed steps.
        weights: of dreamed and of real episodes.
    """
    bins = int(max(dream.age.max(), real.age.max())) // span + 1
    ours, theirs = weights[0][dream.episode] * kept, weights[1][real.episode]
    shares = np.bincount(dream.age // span, ours, bins)
    there = np.bincount(real.age // span, theirs, bins)
    both = (shares > 0) & (there > 0)  # ages that one of them never reached are left out
    shares = np.where(both, shares, 0.0)
    inside = ours * both[dream.age // span]
    rows = []
    for name in shared(dream, real):
        sums = np.bincount(real.age // span, theirs * real.values[name], bins)
        rates = np.divide(sums, there, where=both, out=np.zeros(bins))
        rows.append((np.average(dream.values[name], weights=inside), np.average(rates, weights=shares)))
    return np.array(rows).T


def shared(dream: Steps, real: Steps) -> list[str]:
    """Names of what is known of both: a real env may lack a variable."""
    return [name for name in dream.values if name in real.values]


def compare(dream: Steps, real: Steps, settings: Settings) -> list[dict[str, Any]]:
    """A row for no guard and for each bound."""
    rng = np.random.default_rng(settings.seed)
    counts = [int(steps.episode.max()) + 1 for steps in (dream, real)]
    draws = [[np.bincount(rng.integers(n, size=n), minlength=n) for n in counts] for _ in range(settings.draws)]
    made = []
    for bound in (None, *settings.bounds):
        kept = np.ones(len(dream.age), np.bool_) if bound is None else dream.trusted(bound)
        ours, theirs = means(dream, real, kept, [np.ones(n) for n in counts], settings.span)
        spread = [np.subtract(*means(dream, real, kept, weights, settings.span)) for weights in draws]
        low, high = np.quantile(spread, (0.025, 0.975), axis=0)
        row: dict[str, Any] = {"bound": bound, "kept": round(float(kept.mean()), 4)}
        for k, name in enumerate(shared(dream, real)):
            found = {"dream": ours[k], "real": theirs[k], "gap": ours[k] - theirs[k], "low": low[k], "high": high[k]}
            row[name] = {key: round(float(x), 5) for key, x in found.items()}
        made.append(row)
    return made


def line_of(row: dict[str, Any]) -> str:
    """A row in words."""
    said = "no guard" if row["bound"] is None else f"bound {row['bound']:g}, {row['kept']:.1%} of the steps"
    parts = [
        "{} {dream:.4g} dreamed, {real:.4g} real, gap {gap:+.4g} [{low:+.4g}, {high:+.4g}]".format(name, **found)
        for name, found in row.items()
        if isinstance(found, dict)
    ]
    return f"{said}: {'; '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting, 130 for Ctrl-C."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m agents.gap", description=__doc__)
    try:
        settings.check()
        rows = compare(*played(settings), settings)
        settings.out.mkdir(parents=True, exist_ok=True)
        about = {name: getattr(settings, name) for name in ("world", "policy", "guard", "worlds", "steps", "episodes")}
        write_text(
            settings.out / "gap.json", json.dumps({**about, "seed": settings.seed, "rows": rows}, indent=1) + "\n"
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: nothing was written", file=sys.stderr)
        return 130
    print("\n".join(line_of(row) for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
