"""Real episodes: the game that a world was learned from, played at the world's own size and rate.

Knows the real env, policies and players; knows nothing of dreams. Which episodes are played follows from seeds alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from engine import DiscreteActions, PixelEnv, Start, WorldSpec
from inferix_env.actions import space_of
from inferix_env.evaluation.players import Player
from inferix_env.evaluation.policies import Policy
from inferix_env.real import same_actions


@dataclass(frozen=True)
class Episode:
    """One real episode.

    Row t is what step t led to; row 0 is the reset, its action all zeros. Where the end showed no picture, the last row
    has no frame: T is S or S - 1.

    Attributes:
        frames: uint8 [T, H, W, 3].
        choices: action indices int64 [S], -1 at row 0; of other actions the encoded rows again.
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
        settle: held neutral actions after each reset, before the first frame.
        kwargs: further arguments of the env.

    Raises:
        ValueError: the env is unknown or not installed, has other actions, or lacks a variable of the world.
    """

    def __init__(self, env_id: str, spec: WorldSpec, frame_skip: int, settle: int = 0, kwargs: dict | None = None):
        if env_id.startswith("Vizdoom"):
            require("vizdoom", f"the env {env_id}")
        self.env = PixelEnv(env_id, spec.frame, frame_skip, kwargs, settle)
        self.env_id, self.spec, self.frame_skip, self.settle = env_id, spec, frame_skip, settle
        if not same_actions(space_of(spec.actions), self.env.action_space):
            self.env.close()
            raise ValueError(f"{env_id} has the actions {self.env.action_space}: {spec.name} has {spec.actions}")
        names = list(self.env.variable_names)
        missing = [v.name for v in spec.variables if v.name not in names]
        if missing:
            raise ValueError(f"{env_id} has no variables {missing}: it has {names}")
        self.columns = [names.index(v.name) for v in spec.variables]

    @classmethod
    def of_card(
        cls, spec: WorldSpec, card: Mapping[str, Any], env: str | None = None, frame_skip: int | None = None
    ) -> RealGame:
        """The real env that a world's card names, as the world's data were recorded.

        Args:
            env, frame_skip: in place of the card's.

        Raises:
            ValueError: the card names none, and as above.
        """
        data = card.get("data", {})
        if env is None and "env" not in data:
            raise ValueError(f"the card of {spec.name} names no real env: give --env, or episodes by --recorded")
        held = frame_skip if frame_skip is not None else int(data.get("frame_skip", 1))
        return cls(env or data["env"], spec, held, int(data.get("settle", 0)), data.get("kwargs"))

    def play(self, policies: Sequence[Policy], seeds: Sequence[int], limit: int, title: str) -> Iterator[Episode]:
        """Episodes from `seeds`, the i-th under policy i modulo their number, each cut after `limit` steps."""
        for i, seed in enumerate(tqdm(seeds, desc=f"{title}: real episodes", unit="episode", leave=False)):
            stream = policies[i % len(policies)](np.random.default_rng(seed))
            yield self._episode(lambda frame, stream=stream: next(stream, None), seed, limit)  # type: ignore[misc]

    def follow(self, players: Sequence[Player], seeds: Sequence[int], limit: int, title: str) -> Iterator[Episode]:
        """As `play`, of players that see the frames."""
        shown = tqdm(seeds, desc=f"{title}: real episodes", unit="episode", leave=False, disable=len(seeds) < 2)
        for i, seed in enumerate(shown):
            player = players[i % len(players)]
            player.reset(seed)
            yield self._episode(player, seed, limit)

    def close(self) -> None:
        self.env.close()

    def _episode(self, choose: Callable[[np.ndarray], Any], seed: int, limit: int) -> Episode:
        """One episode of what `choose` does on seeing each frame, until it gives None."""
        seen, chosen = [self.env.reset(int(seed))], list[Any]()
        while len(chosen) < limit and not (seen[-1].terminated or seen[-1].truncated):
            action = choose(seen[-1].frame)
            if action is None:
                break
            seen.append(self.env.step(action))
            chosen.append(action)
        actions = np.zeros((len(seen), self.spec.actions.width), np.float32)
        actions[1:] = [self.spec.actions.encode(action) for action in chosen] if chosen else 0
        return Episode(
            seed=int(seed),
            frames=np.stack([s.frame for s in seen if s.valid]),
            choices=choices_of(actions, self.spec),
            actions=actions,
            rewards=np.array([s.reward for s in seen], np.float64),
            variables=np.stack([s.variables[self.columns] for s in seen]).astype(np.float64),
            terminated=seen[-1].terminated,
        )


def choices_of(actions: np.ndarray, spec: WorldSpec) -> np.ndarray:
    """`Episode.choices` of encoded rows [S, A]."""
    if not isinstance(spec.actions, DiscreteActions):
        return actions
    indices = actions.argmax(-1).astype(np.int64)
    return np.where(actions.any(-1), indices, -1)


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
