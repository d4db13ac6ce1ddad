"""A step of worlds: its legs, the blocks that enter, become history and stay in flight until the next step.

Most models have one block in flight, which a step makes and commits; of staggered ones the step finishes the oldest of
several. Runs passes through a Runner; knows no formulas.

Legend: N worlds, B blocks in flight, F latent frames of one, C H W latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from engine.conditioning import Condition
from engine.runner import Runner
from engine.schedule import Leg
from engine.world import World


def step(runner: Runner, worlds: list[World], legs: Sequence[Leg], condition: Condition) -> Tensor:
    """Run the legs of a step; return each world's finished block, clean latents [N, F, C, H, W].

    Args:
        condition: of the block that enters.
    """
    size = runner.spec.block_at(worlds[0].table.length)
    flight = in_flight(worlds)
    with unless_it_fails(runner, worlds, legs):
        for leg in legs:
            if leg.enters:
                flight = enter(runner, worlds, flight, size)
            assert flight is not None
            flight = runner.run(worlds, leg.passes, flight, told(runner, worlds, condition))
            finished = flight[:, :size]
            if leg.passes[-1].commit:
                flight = leave(worlds, flight[:, size:])
    return finished if flight is None else hold(worlds, flight, size)


def in_flight(worlds: list[World]) -> Tensor | None:
    """Latents of the blocks in flight between two steps, [N, B F, C, H, W]; None where there are none."""
    latents = [w.flight for w in worlds if w.flight is not None]
    return torch.stack(latents) if latents else None


def enter(runner: Runner, worlds: list[World], flight: Tensor | None, size: int) -> Tensor:
    """The latents in flight with a block of noise behind them, which reads the prompt that holds now."""
    finished = bool(worlds[0].prompts) and worlds[0].prompts[0] is None
    ahead = (0 if flight is None else flight.shape[1] // size) - finished
    fresh = runner.noise(worlds, 0, (size, *runner.spec.latent), ahead=ahead)
    for world in worlds if runner.spec.staggered else ():
        left = None if world.horizon is None else world.horizon - world.block - ahead
        assert world.context is not None
        world.prompts += (world.context.before_end(left),)
    return fresh if flight is None else torch.cat([flight, fresh], dim=1)


def leave(worlds: list[World], flight: Tensor) -> Tensor | None:
    """The latents still in flight once the oldest block has become history; None where there are none."""
    for world in worlds:
        world.prompts, world.given = world.prompts[1:], None
    return flight if flight.shape[1] else None


def hold(worlds: list[World], flight: Tensor, size: int) -> Tensor:
    """Keep what is in flight until the next step; return the block that is finished."""
    for world, latents in zip(worlds, flight, strict=True):
        world.flight, world.prompts = latents, (None, *world.prompts[1:])
        world.latents = latents[:size].clone()  # a snapshot keeps no tensor twice
    return flight[:, :size]


def told(runner: Runner, worlds: list[World], condition: Condition) -> Condition:
    """The condition of all blocks in flight."""
    return replace(condition, chunks=tuple(w.prompts for w in worlds)) if runner.spec.staggered else condition


def unseen(runner: Runner, worlds: list[World], frames: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Decoded frames [T, H, W, 3] of each world without those that were there before.

    A block that goes on with a video begins with its last frames. Of a picture all are new: its latent moves with the
    block's, so they are not quite the picture.
    """
    rate = runner.spec.frames_per_latent
    given = [0 if w.given is None else len(w.given) for w in worlds]
    skips = [0 if g == 1 and not w.table.length else g * rate for g, w in zip(given, worlds, strict=True)]
    return [made[skip:] for made, skip in zip(frames, skips, strict=True)] if any(skips) else frames


@contextmanager
def unless_it_fails(runner: Runner, worlds: list[World], legs: Sequence[Leg]) -> Iterator[None]:
    """Leave worlds as they were if a leg fails: what an earlier one gave up is held until then."""
    if len(legs) == 1 and not runner.spec.staggered:  # nothing is given up before the only leg is through
        yield
        return
    before = [w.fork() for w in worlds]
    for old in before:
        runner.pool.retain(old.table.pages)
    try:
        yield
    except BaseException:
        for world, old in zip(worlds, before, strict=True):
            runner.pool.release(world.table.pages)
            vars(world).update(vars(old))
        raise
    for old in before:
        runner.pool.release(old.table.pages)
