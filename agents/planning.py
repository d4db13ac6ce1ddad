"""Planning by dreaming: candidates are drawn, dreamed on from one state in one batched call, and the best is taken.

Random shooting, and the cross-entropy method (Rubinstein 1999) as in PlaNet (Hafner et al. 2019, algorithm 2). Knows
inferix_env's vector env; does not know what is acted in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np

from inferix_env.vector import WorldSimVectorEnv


@dataclass(frozen=True)
class PlannerConfig:
    """Plan by dreaming.

    Attributes:
        world: a shipped world's name, or a folder.
        modes: what is acted in: a dream, the real env, or both in turn.
        method: random shooting, or the cross-entropy method, which draws its candidates in `rounds`.
        candidates: action sequences tried a plan, one or more budgets; 1 plans nothing and acts at random.
        beside: policies that play the same episodes for comparison, such as trained (see agents.policies).
        rounds: of the cross-entropy method; each draws an equal part of the candidates.
        horizon: steps dreamed ahead.
        repeat: steps that a drawn action is held.
        interval: steps that are taken before the next plan.
        futures: noises under which every candidate is dreamed; its value is their mean.
        weights: what a named variable's expected change by 1 is worth beside the reward, such as health 0.2.
        end_cost: what a step's end probability of 1 costs.
        discount: of the value, a step.
        context: real frames that a plan's dream goes on from.
        episodes: for each mode and budget.
        seed: of the first episode; each further one takes the next.
        max_steps: an episode is cut there.
        num_steps: denoising passes of a dreamed step; the world's own by default.
        device: where dreams run.
        out: folder of episodes.jsonl and planner.png.
    """

    world: str = "doom-take-cover"
    modes: tuple[Literal["dream", "real"], ...] = ("dream", "real")
    method: Literal["shooting", "cem"] = "shooting"
    candidates: tuple[int, ...] = (1, 16)
    beside: tuple[str, ...] = ()
    rounds: int = 3
    horizon: int = 12
    repeat: int = 4
    interval: int = 4
    futures: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    end_cost: float = 0.0
    discount: float = 1.0
    context: int = 12
    episodes: int = 3
    seed: int = 20_000
    max_steps: int = 525
    num_steps: int | None = None
    device: str = "cpu"
    out: Path = Path("out/planner")

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        counts = ("rounds", "horizon", "repeat", "interval", "futures", "context", "episodes", "max_steps")
        wrong = [f"--{name.replace('_', '-')} {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if wrong or not self.modes or not self.candidates or min(self.candidates, default=0) < 1 or self.seed < 0:
            raise ValueError(
                f"{', '.join(wrong) or 'modes, candidates, seed'}: expected every count from 1, seed from 0"
            )
        if self.interval > self.horizon:
            raise ValueError(f"--interval {self.interval}: expected at most the horizon, {self.horizon}")
        few = [n for n in self.candidates if self.method == "cem" and 1 < n < 4 * self.rounds]
        if few:
            raise ValueError(
                f"--candidates {few} in {self.rounds} rounds: expected 4 a round or more, {4 * self.rounds}"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"--discount {self.discount}: expected a number above 0, up to 1")


class Belief(Protocol):
    """A distribution over action sequences of S slots, each held for `repeat` steps."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` sequences, [count, S, ...]."""

    def fit(self, elites: np.ndarray) -> Belief:
        """The distribution of the best sequences, with some of the old one in it."""


@dataclass(frozen=True)
class Categorical:
    """Of a discrete action, by slot: odds [S, n]."""

    odds: np.ndarray
    keep: float = 0.2

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        below = rng.random((count, len(self.odds), 1)) > self.odds.cumsum(-1)[None, :, :-1]
        return below.sum(-1)

    def fit(self, elites: np.ndarray) -> Categorical:
        shares = np.eye(self.odds.shape[1])[elites].mean(0)
        return Categorical(self.keep * self.odds + (1 - self.keep) * shares, self.keep)


@dataclass(frozen=True)
class Gaussian:
    """Of a vector between bounds, by slot: mean and deviation [S, A]; what falls outside is clipped."""

    mean: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    keep: float = 0.2

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        drawn = self.mean + self.deviation * rng.standard_normal((count, *self.mean.shape))
        return np.clip(drawn, self.low, self.high).astype(np.float32)

    def fit(self, elites: np.ndarray) -> Gaussian:
        mean = self.keep * self.mean + (1 - self.keep) * elites.mean(0)
        deviation = self.keep * self.deviation + (1 - self.keep) * elites.std(0)
        return Gaussian(mean, deviation, self.low, self.high, self.keep)


def belief_of(space: gym.Space, slots: int) -> Belief:
    """What is thought of plans before any is tried: all actions alike.

    Raises:
        ValueError: the actions are neither discrete nor a bounded vector.
    """
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(np.full((slots, int(space.n)), 1 / int(space.n)))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return Gaussian(np.tile((low + high) / 2, (slots, 1)), np.tile((high - low) / 2, (slots, 1)), low, high)
    raise ValueError(f"actions {space}: plans are made of discrete actions, or of bounded vectors")


class Dreams:
    """Many dreams from one state, stepped together: worlds of one vector env, all forks of the first.

    Args:
        count: of dreams.
    """

    def __init__(self, config: PlannerConfig, count: int):
        options = {"world": config.world, "num_steps": config.num_steps, "device": config.device}
        self.env = WorldSimVectorEnv(count, deterministic=False, autoreset_mode="Disabled", **options)
        unknown = sorted(set(config.weights) - {v.name for v in self.env.world_spec.variables})
        if unknown:
            raise ValueError(
                f"--weights {unknown}: {config.world} has {[v.name for v in self.env.world_spec.variables]}"
            )
        self.config, self.count = config, count
        self.env.reset(seed=0)
        self.steps = 0

    def place(self, options: Mapping[str, Any], seeds: Sequence[int]) -> None:
        """Put all dreams in the state that reset's options give, each with noise of its own seed."""
        first = np.arange(self.count) == 0
        _, infos = self.env.reset(options={**options, "reset_mask": first})
        self.variables = {name: np.full(self.count, infos["variables"][name][0]) for name in self.config.weights}
        if self.count > 1:
            self.env.fork(0, range(1, self.count), seeds[1:])
            self.env.fork(1, [0], seeds[:1])  # nor may the first one know the noise that comes

    def values(self, actions: np.ndarray) -> np.ndarray:
        """What actions [count, horizon, ...] are worth, dream by dream, float64 [count]; an end ends it."""
        total, alive, before = np.zeros(self.count), np.ones(self.count, np.bool_), self.variables
        for step in range(actions.shape[1]):
            _, rewards, terminated, truncated, infos = self.env.step(actions[:, step])
            self.steps += int(alive.sum())
            worth = rewards - self.config.end_cost * infos["end_probability"]
            for name, weight in self.config.weights.items():
                worth = worth + weight * (infos["expected_variables"][name] - before[name])
            total += np.where(alive, self.config.discount**step * worth, 0.0)
            over = terminated | truncated
            alive &= ~over
            if not alive.any():
                break
            if over.any():  # something has to move in their place
                self.env.fork(int(np.argmax(alive)), np.flatnonzero(over).tolist())
            before = {name: infos["variables"][name].copy() for name in self.config.weights}
        return total

    def close(self) -> None:
        self.env.close()


class Planner:
    """Chooses the next actions by dreaming.

    Args:
        candidates: action sequences tried a plan.
    """

    def __init__(self, config: PlannerConfig, space: gym.Space, candidates: int):
        self.config = config
        self.slots = -(-config.horizon // config.repeat)
        self.blank, self.rng = belief_of(space, self.slots), np.random.default_rng()
        self.rounds = config.rounds if config.method == "cem" else 1
        self.tried = candidates // self.rounds
        self.dreams = Dreams(config, self.tried * config.futures) if candidates > 1 else None

    def reset(self, seed: int) -> None:
        """Begin an episode: the same seed, the same plans."""
        self.rng = np.random.default_rng((seed, 1))
        self.last: np.ndarray | None = None

    def plan(self, options: Mapping[str, Any]) -> np.ndarray:
        """The actions of the next `interval` steps from where reset's options are, [interval, ...]."""
        best = self._search(self.dreams, options) if self.dreams else self.blank.draw(self.rng, 1)[0]
        moved = self.config.interval // self.config.repeat  # whole slots that are over by the next plan
        self.last = np.concatenate([best[moved:], self.blank.draw(self.rng, moved)[:, 0]]) if moved else best
        return best.repeat(self.config.repeat, axis=0)[: self.config.interval]

    def _search(self, dreams: Dreams, options: Mapping[str, Any]) -> np.ndarray:
        """The best sequence found, [S, ...]; what the last plan had left to do is among those tried."""
        belief, best, worth = self.blank, self.blank.draw(self.rng, 1)[0], -np.inf
        seeds = self.rng.integers(2**62, size=self.config.futures).tolist()  # the same for all: only actions differ
        for turn in range(self.rounds):
            drawn = belief.draw(self.rng, self.tried)
            if turn == 0 and self.last is not None:
                drawn[0] = self.last
            dreams.place(options, seeds * self.tried)
            actions = drawn.repeat(self.config.futures, axis=0).repeat(self.config.repeat, axis=1)
            values = dreams.values(actions[:, : self.config.horizon]).reshape(self.tried, -1).mean(1)
            order = np.argsort(-values, kind="stable")
            if values[order[0]] > worth:
                best, worth = drawn[order[0]], values[order[0]]
            belief = belief.fit(drawn[order[: max(2, self.tried // 4)]])
        return best

    def close(self) -> None:
        if self.dreams is not None:
            self.dreams.close()
