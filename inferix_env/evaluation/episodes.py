"""Real episodes: the game that a world was learned from, played at the world's own size and rate.

Knows the real env and policies; knows nothing of dreams. Which episodes are played follows from seeds alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from engine import PixelEnv, Start, WorldSpec
from inferix_env.evaluation.policies import Policy


@dataclass(frozen=True)
class Episode:
    """One real episode.

    Row t is what step t led to; row 0 is the reset, its action all zeros. Where the end showed no picture, the last row
    has no frame: T is S or S - 1.

    Attributes:
        frames: uint8 [T, H, W, 3].
        choices: action indices int64 [S], -1 at row 0.
        actions: the same, encoded, float32 [S, A].
        rewards: float64 [S].
        variables: raw named variables float64 [S, V], in the spec's order.
        terminated: the last row's step ended the episode.
    """

    seed: int
    frames: np.ndarray
    choices: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    variables: np.ndarray
    terminated: bool

    @property
    def steps(self) -> int:
        """How many steps it lasted."""
        return len(self.choices) - 1

    def rows(self, begin: int, end: int) -> Start:
        """Rows [begin, end), all with frames, as the engine takes them."""
        return Start(self.frames[begin:end], self.actions[begin:end], self.variables[begin:end])


class RealGame:
    """The real env behind a world.

    Args:
        env_id: a Gymnasium id, or "module:id".
        spec: of the world; gives the frames' size, the actions and the variables.
        frame_skip: env steps that an action is held.

    Raises:
        ValueError: the env is unknown or not installed, has other actions, or lacks a variable of the world.
    """

    def __init__(self, env_id: str, spec: WorldSpec, frame_skip: int):
        if env_id.startswith("Vizdoom"):
            require("vizdoom", f"the env {env_id}")
        self.env = PixelEnv(env_id, spec.frame, frame_skip)
        self.env_id, self.spec, self.frame_skip = env_id, spec, frame_skip
        count = getattr(self.env.action_space, "n", None)
        if count != spec.actions.width:
            raise ValueError(f"{env_id} has the actions {self.env.action_space}: {spec.name} has {spec.actions}")
        names = list(self.env.variable_names)
        missing = [v.name for v in spec.variables if v.name not in names]
        if missing:
            raise ValueError(f"{env_id} has no variables {missing}: it has {names}")
        self.columns = [names.index(v.name) for v in spec.variables]

    def play(self, policies: Sequence[Policy], seeds: Sequence[int], limit: int, title: str) -> Iterator[Episode]:
        """Episodes from `seeds`, the i-th under policy i modulo their number, each cut after `limit` steps."""
        for i, seed in enumerate(tqdm(seeds, desc=f"{title}: real episodes", unit="episode", leave=False)):
            yield self._episode(policies[i % len(policies)], seed, limit)

    def close(self) -> None:
        self.env.close()

    def _episode(self, policy: Policy, seed: int, limit: int) -> Episode:
        seen = [self.env.reset(int(seed))]
        choices = [-1]
        for action in policy(np.random.default_rng(seed)):
            seen.append(self.env.step(action))
            choices.append(action)
            if seen[-1].terminated or seen[-1].truncated or len(choices) > limit:
                break
        actions = np.zeros((len(seen), self.spec.actions.width), np.float32)
        actions[1:] = self.spec.actions.encode_rows(np.array(choices[1:], np.int64))
        return Episode(
            seed=int(seed),
            frames=np.stack([s.frame for s in seen if s.valid]),
            choices=np.array(choices, np.int64),
            actions=actions,
            rewards=np.array([s.reward for s in seen], np.float64),
            variables=np.stack([s.variables[self.columns] for s in seen]).astype(np.float64),
            terminated=seen[-1].terminated,
        )


def require(module: str, purpose: str) -> None:
    """Raise ValueError, naming the extra, unless a package of the extra `evaluate` is installed."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{purpose} needs the package {module}: pip install 'inferix-env[evaluate]'")


def pick_rows(
    episodes: Sequence[Episode], before: int, after: int, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw `count` different (episode, row) with `before` frames up to the row and `after` beyond it.

    Raises:
        ValueError: the episodes have fewer such rows.
    """
    found = [(i, t) for i, e in enumerate(episodes) for t in range(before - 1, len(e.frames) - after)]
    return draw(found, count, rng, f"rows with {before} frames up to them and {after} after them")


def draw(found: list, count: int, rng: np.random.Generator, what: str) -> list:
    """`count` different ones of `found`, in random order.

    Raises:
        ValueError: there are not as many.
    """
    if len(found) < count:
        raise ValueError(f"real episodes have {len(found)} {what}: expected at least {count}; choose another --seed")
    return [found[i] for i in rng.permutation(len(found))[:count]]
