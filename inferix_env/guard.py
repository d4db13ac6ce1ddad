"""Guards against dream exploits: numbers a step that say how far a dream may have left what its world learned.

Three signals, each asked for by name:

- renoise: how far the block and the model's second opinion of it lie apart, root mean square, in standard deviations
  of latents (see engine.uncertainty). Costs one pass more a step, and room for as many worlds again.
- latent: how unusual each channel's mean and spread are, against real frames: a Mahalanobis distance divided by the
  root of its dimensions, about 1 on real frames.
- action: how badly the action can be read off the last two latent frames by a probe that learned it on real ones:
  nats of a discrete action, else half the mean squared error over the probe's own on real frames.

The last two need what `python -m inferix_env.evaluation.reference` learns of the real env and writes beside the world.
Signals are read: the same seed and actions give the same frames with and without them. Knows the engine's worlds as
values; knows no Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import AnyEngine, Block, Condition, World, held, second_opinion
from inferix_env.reference import Reference, reference_of

SIGNALS = ("renoise", "latent", "action")
# The noise level that a block is taken back to for its second opinion: of 0.4, 0.67 and 0.89 the one that predicts
# the real error best (benchmarks/results/guards.json).
LEVEL = 0.89

Readings = dict[str, float]


@dataclass(frozen=True)
class Moment:
    """One step of N worlds, as signals see it.

    Attributes:
        before: forks of the worlds as they stood before the step; none if no signal wants them.
        past: the clean latents before the block, float32 [K, C, h, w] each.
        latents: the block's, float32 [F, C, h, w] each.
        conditions: what the step was made under.
    """

    before: Sequence[World]
    past: Sequence[Tensor]
    latents: Sequence[Tensor]
    conditions: Sequence[Condition]


# A signal of each world; world by world, so that a number does not depend on the worlds beside it.
Signal = Callable[[AnyEngine, Moment], list[float]]


class Unguarded:
    """Steps worlds; reads nothing."""

    blank: Readings | None = None

    def __init__(self, sim: AnyEngine):
        self.sim = sim

    def step(
        self, worlds: list[World], conditions: Sequence[Condition]
    ) -> tuple[list[Block], Sequence[Readings | None]]:
        """The next block of each world, and what was read of it."""
        return self.sim.step(worlds, conditions), [None] * len(worlds)

    def exceeded(self, readings: Readings | None) -> bool:
        """Whether a signal lies above its bound."""
        return False


class Guard:
    """Steps worlds and reads signals off each step.

    Args:
        signals: by name.
        bounds: above which a signal ends the episode, by name.
        forks: whether signals want the worlds as they stood before; the engine then needs room for as many again.
    """

    def __init__(self, sim: AnyEngine, signals: Mapping[str, Signal], bounds: Mapping[str, float], forks: bool):
        self.sim, self.signals, self.bounds, self.forks = sim, dict(signals), dict(bounds), forks
        self.blank = dict.fromkeys(self.signals, 0.0)

    def step(self, worlds: list[World], conditions: Sequence[Condition]) -> tuple[list[Block], Sequence[Readings]]:
        """See `Unguarded.step`; also its errors, at which nothing has moved."""
        past = [latents_of(world) for world in worlds]
        with self._before(worlds) as forks:
            blocks = self.sim.step(worlds, conditions)
            moment = Moment(forks, past, [latents_of(world) for world in worlds], conditions)
            columns = [signal(self.sim, moment) for signal in self.signals.values()]
        return blocks, [dict(zip(self.signals, row, strict=True)) for row in zip(*columns, strict=True)]

    def exceeded(self, readings: Readings | None) -> bool:
        """Whether a signal lies above its bound."""
        return any((readings or {})[name] > bound for name, bound in self.bounds.items())

    def _before(self, worlds: list[World]) -> AbstractContextManager[Sequence[World]]:
        return held(self.sim, worlds) if self.forks else nullcontext(())


def guard_of(sim: AnyEngine, folder: Path, names: Sequence[str], bounds: Mapping[str, float]) -> Guard | Unguarded:
    """The guard of these signals, or none.

    Raises:
        ValueError: a signal needs what the world's folder does not have.
    """
    if not names:
        return Unguarded(sim)
    reference = reference_of(folder) if {"latent", "action"} & set(names) else None
    return Guard(sim, {name: signal_of(name, reference) for name in names}, bounds, needs_room(names))


def check_guard(names: Sequence[str], bound: float | Mapping[str, float] | None, published: bool) -> None:
    """Raise ValueError unless these signals can be read of such a world, and the bounds are of some of them."""
    unknown = [name for name in names if name not in SIGNALS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"guard {list(names)}: expected some of {list(SIGNALS)}, each once")
    if names and published:
        raise ValueError("guard: for worlds trained here only; published checkpoints have no reference")
    bounds_of(names, bound)


def bounds_of(names: Sequence[str], bound: float | Mapping[str, float] | None) -> dict[str, float]:
    """The bound of each signal that has one.

    Raises:
        ValueError: a bound is no positive number, or of a signal that is not read.
    """
    if bound is None:
        return {}
    if not isinstance(bound, Mapping):
        if len(names) != 1:
            raise ValueError(
                f"guard_bound {bound!r} with guard {list(names)}: expected {{signal: bound}}, or one signal"
            )
        bound = {names[0]: bound}
    unread = sorted(set(bound) - set(names))
    if unread:
        raise ValueError(f"guard_bound of {unread}: expected some of the signals in guard, {list(names)}")
    wrong = {name: x for name, x in bound.items() if isinstance(x, bool) or not isinstance(x, Real) or not x > 0}
    if wrong:
        raise ValueError(f"guard_bound {wrong}: expected positive numbers")
    return {name: float(x) for name, x in bound.items()}


def needs_room(names: Sequence[str]) -> bool:
    """Whether the worlds are forked while they step, so that the engine needs room for as many again."""
    return "renoise" in names


def signal_of(name: str, reference: Reference | None) -> Signal:
    if reference is None:
        return renoise(LEVEL)
    return {"renoise": renoise(LEVEL), "latent": unusual(reference), "action": unread(reference)}[name]


def renoise(level: float) -> Signal:
    """Root mean square of block less second opinion."""

    def read(sim: AnyEngine, moment: Moment) -> list[float]:
        blocks = torch.stack(list(moment.latents))
        again = second_opinion(sim, moment.before, moment.conditions, blocks, level)
        return [float(np.sqrt(np.square(x).mean())) for x in (again - blocks).cpu().double().numpy()]

    return read


def unusual(reference: Reference) -> Signal:
    """Distance of channel statistics from real frames', of the block's last latent frame."""
    return lambda sim, moment: [reference.distance(latents[-1]) for latents in moment.latents]


def unread(reference: Reference) -> Signal:
    """Mean over the block's latent frames of what the probe misses of their actions."""

    def read(sim: AnyEngine, moment: Moment) -> list[float]:
        rows = zip(moment.past, moment.latents, moment.conditions, strict=True)
        return [reference.missed(past[-1:], latents, condition.actions) for past, latents, condition in rows]

    return read


def latents_of(world: World) -> Tensor:
    assert world.latents is not None  # a world of ours begins with real frames
    return world.latents
