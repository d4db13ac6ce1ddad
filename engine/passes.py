"""What a step of a world runs, by its spec: legs of passes, in the units that its model was trained with.

Legend: as in schedule.py and stages.py, where the formulas are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from engine.schedule import Leg, Pass, commit, flow, renoise
from engine.spec import Staggered, WanSpec, WorldSpec
from engine.stages import clean, legs
from engine.world import World

# What the next step of a world runs.
Schedule = Callable[[World], tuple[Leg, ...]]


def commit_pass(spec: WorldSpec) -> Pass:
    """The pass that makes history of given latents."""
    if spec.staggered:
        return clean(spec.staggered)
    return Pass(0.0, commit=True) if spec.rollout else commit(spec.context_noise)


def schedule_of(spec: WorldSpec, num_steps: int | None, dtype: torch.dtype) -> tuple[Schedule, list[Pass]]:
    """What a step runs, and the passes of one that has a history behind it.

    Raises:
        ValueError: num_steps is below 1, or another than a published model was made for.
    """
    if spec.staggered is not None:
        return staggered_schedule(spec.staggered if num_steps is None else replace(spec.staggered, num_steps=num_steps))
    passes = block_passes(spec, num_steps, dtype)
    leg = Leg(tuple(passes), enters=True)
    return lambda world: (leg,), passes


def staggered_schedule(rollout: Staggered) -> tuple[Schedule, list[Pass]]:
    """`schedule_of` for several blocks in flight."""

    def schedule(world: World) -> tuple[Leg, ...]:
        return legs(rollout, world.flight is not None)

    return schedule, [p for leg in legs(rollout, True) for p in leg.passes]


def block_passes(spec: WorldSpec, num_steps: int | None, dtype: torch.dtype) -> list[Pass]:
    """The passes of a block of a model that has one in flight."""
    if spec.rollout is None:
        steps = spec.num_steps if num_steps is None else num_steps
        if steps < 1:
            raise ValueError(f"num_steps {steps}: expected 1 or more")
        return flow(steps, spec.shift, spec.context_noise)
    if num_steps not in (None, len(spec.rollout.steps)):
        raise ValueError(
            f"num_steps {num_steps}: this model was distilled for {len(spec.rollout.steps)} steps; choose a preset"
        )
    published = isinstance(spec.denoiser, WanSpec) and spec.denoiser.published
    return renoise(spec.rollout, dtype if published else torch.float32)
