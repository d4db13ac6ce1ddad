"""Stretches: where the dream sets out from reality, what really followed, and what it dreams under which actions.

One stretch an episode, so that episodes are what intervals are drawn over. Knows real episodes and the engine.

Legend: S steps of a stretch, as far as reality goes; A encoded action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from engine import Condition, Engine, Start
from inferix_env.evaluation.dreaming import GROUP, context, context_length, opened
from inferix_env.evaluation.episodes import Episode


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a real episode.

    Attributes:
        name: of its episode, the same in another run of the same seeds.
        start: the real frames up to where the dream sets out, with their actions and variables.
        frames: what followed, uint8 [S, H, W, 3].
        actions: that led there, encoded float32 [S, A].
        rewards: float64 [S].
    """

    name: str
    start: Start
    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, eq=False)
class Dreamed:
    """What a dream of S steps showed, uint8 [S, H, W, 3], and paid, float64 [S]."""

    frames: np.ndarray
    rewards: np.ndarray


def stretch_of(episode: Episode, length: int, steps: int, rng: np.random.Generator) -> Stretch | None:
    """A drawn place of an episode with `length` frames up to it and `steps` after, or the place that comes nearest.

    None where the episode has no frame after its first `length`.
    """
    last = len(episode.frames) - 1 - steps
    at = int(rng.integers(length - 1, last + 1)) if last >= length - 1 else min(length, len(episode.frames)) - 1
    after = slice(at + 1, min(at + 1 + steps, len(episode.frames)))
    if after.start >= after.stop:
        return None
    return Stretch(
        str(episode.seed),
        context(episode, at, length),
        episode.frames[after],
        episode.actions[after],
        episode.rewards[after],
    )


def stretches_of(episodes: Sequence[Episode], engine: Engine, steps: int, rng: np.random.Generator) -> list[Stretch]:
    """A stretch of each episode that is long enough for one.

    Raises:
        ValueError: fewer than two are: intervals and wrong actions need more.
    """
    length = context_length(engine.spec)
    found = [stretch for e in episodes if (stretch := stretch_of(e, length, steps, rng))]
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} of {len(episodes)} real episodes last longer than the {length} frames that a dream is "
            "given: expected 2 or more; play longer ones, or more of them"
        )
    return found


def wrong_actions(stretches: Sequence[Stretch]) -> list[np.ndarray]:
    """For each stretch the actions [S, A] of the next one, from their beginning again where they end before."""
    others = [*stretches[1:], stretches[0]]
    return [
        np.resize(other.actions, (len(own), other.actions.shape[1]))
        for own, other in zip(stretches, others, strict=True)
    ]


def dream(
    engine: Engine, stretches: Sequence[Stretch], actions: Sequence[np.ndarray], rng: np.random.Generator, title: str
) -> list[Dreamed]:
    """Dream on from each start under actions [S, A] of its own, past any end that is drawn."""
    seeds = rng.integers(2**62, size=len(stretches))
    out: list[Dreamed] = []
    with tqdm(total=sum(map(len, actions)), desc=title, unit="step", leave=False, disable=None) as bar:
        for i in range(0, len(stretches), GROUP):
            group = slice(i, i + GROUP)
            out += dream_group(engine, [s.start for s in stretches[group]], actions[group], seeds[group], bar)
    return out


def dream_group(
    engine: Engine, starts: Sequence[Start], actions: Sequence[np.ndarray], seeds: np.ndarray, bar: tqdm
) -> list[Dreamed]:
    """`dream` for worlds that are stepped side by side, each until its actions are done."""
    made = [Dreamed(np.zeros((len(a), *engine.spec.frame, 3), np.uint8), np.zeros(len(a))) for a in actions]
    with opened(engine, starts, seeds) as worlds:
        for step in range(max(map(len, actions))):
            going = [i for i, rows in enumerate(actions) if step < len(rows)]
            conditions = [Condition.of(actions[i][step, None]) for i in going]
            for i, block in zip(going, engine.step([worlds[i] for i in going], conditions), strict=True):
                made[i].frames[step], made[i].rewards[step] = block.frames[-1], block.reward
            bar.update(len(going))
    return made
