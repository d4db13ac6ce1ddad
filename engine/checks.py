"""Checks of what callers hand to the engine, before anything moves. Knows spec and the values; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from engine.conditioning import Condition
from engine.noise import GivenNoise
from engine.schedule import Leg
from engine.spec import KVPolicy, WanSpec, WorldSpec
from engine.world import Start, World


def check_start(start: Start, spec: WorldSpec) -> None:
    """Raise ValueError unless a start has the spec's shapes."""
    given = len(start.frames) or start.latents is not None
    if spec.action_module and given:
        raise ValueError("a Matrix-Game world begins from its picture: expected a context, and no frames or latents")
    if spec.published and given and start.context is None:
        raise ValueError(
            "a published model reads frames and latents under a prompt or an image: give the start a context"
        )
    if start.horizon is not None and (spec.staggered is None or start.horizon < 1):
        raise ValueError(
            f"horizon {start.horizon}: expected 1 or more, of a model that is told how many blocks are to come"
        )
    if spec.published and not len(start.frames):
        check_latents(start, spec)
        return
    if spec.published:
        check_clip(check_frames(start.frames, spec), spec)
        return
    check_latents(start, spec)
    count = check_frames(start.frames, spec) if start.latents is None else len(start.latents)
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


def check_frames(frames: np.ndarray, spec: WorldSpec) -> int:
    """How many they are. Raises ValueError unless they are pictures of the spec's size."""
    height_width = (*spec.frame, 3)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != height_width or len(frames) < 1:
        raise ValueError(
            f"start frames are {frames.dtype} {list(frames.shape)}: expected uint8 [K, *{list(height_width)}], K >= 1"
        )
    return len(frames)


def check_seen(seen: Start, spec: WorldSpec, world: World) -> None:
    """Raise ValueError unless what a world is to see next has the spec's shapes."""
    if world.flight is not None or world.given is not None:
        raise ValueError(
            "observe: later blocks of this world are in flight already, or begin with what it was given: nothing can "
            "come before them. Open a world with all that was seen"
        )
    if not spec.published:
        check_start(seen, spec)
        return
    if len(seen.frames):
        raise ValueError(
            "observe takes no frames here: a video codec encodes them after all frames before, and those dreamed were "
            "never encoded. Give latents, or open a world with all frames"
        )
    if spec.action_module or seen.latents is None or seen.context is not None:
        raise ValueError("observe takes latents of a text world, and no context: a new prompt comes with a step")
    check_latents(seen, spec, world.table.length)


def check_latents(start: Start, spec: WorldSpec, length: int = 0) -> None:
    """Raise ValueError unless a model can go on with these latents after `length`, or with none."""
    if start.latents is None:
        return
    shape, expected = list(start.latents.shape), list(spec.latent)
    if shape[1:] != expected or not shape[0]:
        raise ValueError(f"start latents are {shape}: expected [K, {', '.join(map(str, expected))}], K >= 1")
    check_blocks(shape[0], spec, length)


def check_clip(frames: int, spec: WorldSpec) -> None:
    """Raise ValueError unless so many frames are whole latent frames, and those whole blocks."""
    if spec.staggered:
        if frames % spec.frames_per_latent:
            raise ValueError(f"{frames} start frames: expected a multiple of {spec.frames_per_latent}")
        return
    if (frames - 1) % spec.frames_per_latent:
        raise ValueError(f"{frames} start frames: expected 1 + a multiple of {spec.frames_per_latent}")
    check_blocks(1 + (frames - 1) // spec.frames_per_latent, spec)


def check_blocks(latents: int, spec: WorldSpec, length: int = 0) -> None:
    """Raise ValueError unless so many latent frames are whole blocks after `length`."""
    first = spec.block_at(length)
    if spec.staggered:  # what is left over is shown to the first block in flight
        return
    if latents < first or (latents - first) % spec.block:
        raise ValueError(f"{latents} given latents: this model takes {first} first and then {spec.block} at a time")


def check_policy(policy: KVPolicy, spec: WorldSpec) -> None:
    """Raise ValueError unless a world of this spec can be run under a policy."""
    if spec.staggered and (policy.early or (policy.window or 0) % spec.block):
        raise ValueError(
            f"{policy}: a model with several blocks in flight sees the last of the history in whole blocks: expected a "
            f"window that is a multiple of {spec.block}, or None, and no sinks, pages or top-k"
        )


def check_beside(beside: Tensor | None, spec: WorldSpec) -> None:
    """Raise ValueError unless channels beside the latents are those that a published denoiser is shown."""
    sizes = spec.denoiser
    wanted = sizes.in_channels - sizes.out_channels if isinstance(sizes, WanSpec) else 0
    if not wanted and beside is None:
        return
    expected = [wanted, *spec.latent[1:]]
    if not wanted or beside is None or list(beside.shape[1:]) != expected or not len(beside):
        given = "none" if beside is None else list(beside.shape)
        hope = f"[K, {', '.join(map(str, expected))}], K >= 1" if wanted else "none"
        raise ValueError(f"channels beside the latents are {given}: expected {hope}")


def check_noise(world: World, legs: Sequence[Leg], spec: WorldSpec) -> None:
    """Raise ValueError unless a world's given noise has all that its next step draws."""
    if not isinstance(world.noise, GivenNoise):
        return
    shape = (spec.block_at(world.table.length), *spec.latent)
    first = world.block + (0 if world.flight is None else len(world.flight) // spec.block - 1)
    for block, leg in enumerate((leg for leg in legs if leg.enters), start=first):
        for draw in (0, *(i for i, step in enumerate(leg.passes, start=1) if step.enter)):
            world.noise.latent(block, draw, shape)


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
        if spec.published and world.context is None and condition.prompt is None:
            raise ValueError("a published model needs a prompt or an image: give the start, or this step, a context")
