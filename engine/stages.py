"""The passes of blocks that are in flight together, each further from noise than the one behind it (MAGI-1). Pure.

A *stage* is what lies between two blocks that enter: num_steps / window passes, each of which takes every block in
flight one step on. A block is finished after `window` stages; the first pass of the next one commits it, shown at a
time just before clean, under no prompt. Time runs from 0 (noise) to 1 (clean) and the denoiser predicts
v = dx/dt. Source: Sand.ai, "MAGI-1: Autoregressive Video Generation at Scale" (2025), and its published code.

Legend: N worlds, B blocks in flight, F latent frames of one, C H W latent.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from engine.published import Guidance, Staggered
from engine.schedule import Leg, Pass, Update

# The steps out of a quarter of 16 that are taken where a block has 12, in sixteenths.
SHORTCUTS = {"8,16,16": (0, 2, 3), "16,16,8": (0, 1, 2)}


def times(rollout: Staggered) -> Tensor:
    """A block's times, float32 [num_steps + 1]: u^2 / (3 - 2 u^2) at even u, the inverse of a shift of 3."""
    u = torch.linspace(0, 1, rollout.num_steps + 1)
    if rollout.num_steps == 12:
        taken = SHORTCUTS[rollout.shortcut]
        u = torch.tensor([(4 * quarter + k) / 16 for quarter in range(4) for k in taken] + [1.0])
    s, shift = u**2, 1 / 3
    return shift * s / (1 + (shift - 1) * s)  # in this order: the published code's last bits decide what is past 0.3


def step_sizes(rollout: Staggered) -> list[float]:
    """What a distilled model is told of the length of each of its steps: half the steps that such ones would make."""
    if rollout.num_steps != 12:
        return [rollout.num_steps / 2] * rollout.num_steps
    taken = [*SHORTCUTS[rollout.shortcut], 4]
    return [8.0 / (b - a) for a, b in pairwise(taken)] * 4


def told_size(rollout: Staggered, j: int) -> float | None:
    """What the denoiser is told of the size of pass j of a stage; base models are told nothing."""
    return None if rollout.guidance else step_sizes(rollout)[j]


def weights_at(time: float, guidance: Guidance) -> tuple[float, float]:
    """The weights of history and of text at a time."""
    starts = torch.tensor(guidance.times) - 1e-7
    index = int(torch.searchsorted(starts, torch.tensor(time))) - 1
    return guidance.history[index], guidance.text[index]


def advance(deltas: list[float]) -> Update:
    """Move every block in flight on by its own step: x + v dt, dt float32."""

    def update(shown: Tensor, velocity: Tensor) -> Tensor:
        pairs = zip(shown.chunk(len(deltas), 1), velocity.chunk(len(deltas), 1), strict=True)
        return torch.cat([x + v * dt for (x, v), dt in zip(pairs, deltas, strict=True)], dim=1)

    return update


def clean(rollout: Staggered) -> Pass:
    """The pass over a block that was given, alone: its keys and values become history."""
    return Pass((rollout.clean_time,), commit=True, reach=(rollout.clean_range,), size=told_size(rollout, 0))


@lru_cache(maxsize=64)
def legs(rollout: Staggered, flying: bool) -> tuple[Leg, ...]:
    """What a step of a world runs: one stage, or, where no block is in flight, stages until the first is finished."""
    if flying:
        return tuple(stage(rollout, rollout.window, lead=True))
    return tuple(leg for blocks in range(1, rollout.window + 1) for leg in stage(rollout, blocks, lead=False))


def stage(rollout: Staggered, blocks: int, lead: bool) -> list[Leg]:
    """One stage, in which a block enters.

    Args:
        blocks: unfinished ones in flight, the one that enters among them.
        lead: a finished block goes before them, which the first pass commits.
    """
    count = rollout.num_steps // rollout.window
    passes = [one_pass(rollout, blocks, j) for j in range(count)]
    if not lead:
        return [Leg(tuple(passes), enters=True)]
    first = Leg((with_clean(passes[0], rollout),), enters=True)
    return [first, Leg(tuple(passes[1:]))] if count > 1 else [first]


def one_pass(rollout: Staggered, blocks: int, j: int) -> Pass:
    """Pass j of a stage: the oldest of so many blocks has come furthest."""
    count, t = rollout.num_steps // rollout.window, times(rollout)
    at = [age * count + j for age in reversed(range(blocks))]
    return Pass(
        tuple(float(t[i]) for i in at),
        advance([float(t[i + 1] - t[i]) for i in at]),
        reach=tuple(rollout.range_at(i) for i in at),
        size=told_size(rollout, j),
    )


def with_clean(step: Pass, rollout: Staggered) -> Pass:
    """The same pass with a finished block in front, which stays as it is and becomes history."""
    assert isinstance(step.level, tuple)
    assert step.update is not None
    inner, blocks = step.update, len(step.level)

    def update(shown: Tensor, velocity: Tensor) -> Tensor:
        skip = shown.shape[1] // (blocks + 1)
        return torch.cat([shown[:, :skip], inner(shown[:, skip:], velocity[:, skip:])], dim=1)

    return Pass(
        (rollout.clean_time, *step.level),
        update,
        commit=True,
        reach=(rollout.clean_range, *step.reach),
        size=step.size,
    )
