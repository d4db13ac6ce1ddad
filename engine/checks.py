"""Checks of what callers hand to the engine, before anything moves. Knows spec and the values; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.conditioning import Condition
from engine.spec import WorldSpec
from engine.world import Start, World


def check_start(start: Start, spec: WorldSpec) -> None:
    """Raise ValueError unless a start has the spec's shapes."""
    if spec.rollout and not len(start.frames):
        check_latents(start, spec)
        return
    frames, height_width = start.frames, (*spec.frame, 3)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != height_width or len(frames) < 1:
        raise ValueError(
            f"start frames are {frames.dtype} {list(frames.shape)}: expected uint8 [K, *{list(height_width)}], K >= 1"
        )
    count = len(frames)
    if spec.rollout:
        check_clip(count, spec)
        return
    if count % spec.block:
        raise ValueError(f"{count} start frames: expected a multiple of the block's {spec.block}")
    if np.shape(start.actions) != (count, spec.actions.width):
        raise ValueError(
            f"start actions are {list(np.shape(start.actions))}: expected [{count}, {spec.actions.width}] encoded rows"
        )
    if np.shape(start.variables) != (count, len(spec.variables)):
        names = [v.name for v in spec.variables]
        raise ValueError(
            f"start variables are {list(np.shape(start.variables))}: expected [{count}, {len(names)}] {names}"
        )


def check_latents(start: Start, spec: WorldSpec) -> None:
    """Raise ValueError unless a published model can begin from these latents, or from none."""
    if start.latents is None:
        return
    shape, expected = list(start.latents.shape), list(spec.latent)
    if shape[1:] != expected or not shape[0]:
        raise ValueError(f"start latents are {shape}: expected [K, {', '.join(map(str, expected))}], K >= 1")
    check_blocks(shape[0], spec)


def check_clip(frames: int, spec: WorldSpec) -> None:
    """Raise ValueError unless so many frames are whole latent frames, and those whole blocks."""
    if (frames - 1) % spec.frames_per_latent:
        raise ValueError(f"{frames} start frames: expected 1 + a multiple of {spec.frames_per_latent}")
    check_blocks(1 + (frames - 1) // spec.frames_per_latent, spec)


def check_blocks(latents: int, spec: WorldSpec) -> None:
    first = min(latents, spec.block_at(0))
    if (latents - first) % spec.block or first < spec.block_at(0):
        raise ValueError(
            f"{latents} start latents: this model takes {spec.block_at(0)} first and then {spec.block} at a time"
        )


def check_step(worlds: list[World], conditions: Sequence[Condition], spec: WorldSpec) -> None:
    """Raise ValueError unless every world can move."""
    if not worlds or any(not w.open for w in worlds):
        raise ValueError("step needs at least one world, all of them open")
    if len({id(w) for w in worlds}) != len(worlds):
        raise ValueError("a world is named twice in one step")
    if len(conditions) != len(worlds):
        raise ValueError(f"{len(conditions)} conditions for {len(worlds)} worlds: expected one each")
    for world, condition in zip(worlds, conditions, strict=True):
        expected = [spec.frames_at(world.table.length), spec.actions.width]
        if list(condition.actions.shape) != expected:
            raise ValueError(f"a condition's actions are {list(condition.actions.shape)}: expected encoded {expected}")
        if spec.rollout and world.context is None and condition.prompt is None:
            raise ValueError("a published model needs a prompt or an image: give the start, or this step, a context")
