"""Dreams for measuring: many worlds from real rows under given actions, in groups that the engine steps at once.

Knows the engine's face and real episodes; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm

from engine import Condition, Engine, Start, World, WorldModel, WorldSpec
from inferix_env.evaluation.episodes import Episode

GROUP = 16  # worlds stepped in one call; an engine for evaluation is made with `max_worlds=GROUP`
UNBOUNDED = 12  # frames of context for a world that forgets nothing


def check_world(spec: WorldSpec, model: WorldModel) -> None:
    """Raise ValueError unless a step of the world is one frame."""
    frames = spec.block * model.codec.frames_per_latent
    if frames != 1:
        raise ValueError(f"{spec.name} makes {frames} frames a step: evaluation is written for worlds that make one")


def context_length(spec: WorldSpec) -> int:
    """K, the real frames a dream is given before it starts: all that a block can see."""
    return UNBOUNDED if spec.kv.window is None else spec.kv.window + spec.kv.sink


def context(episode: Episode, row: int, length: int) -> Start:
    """The `length` real rows that end with `row`, or fewer where the episode is younger."""
    return episode.rows(max(0, row + 1 - length), row + 1)


@contextmanager
def opened(engine: Engine, starts: Sequence[Start], seeds: Sequence[int] | np.ndarray) -> Iterator[list[World]]:
    """Worlds opened from starts, closed at the end."""
    worlds: list[World] = []
    try:
        for start, seed in zip(starts, seeds, strict=True):
            worlds.append(engine.open(start, int(seed)))
        yield worlds
    finally:
        for world in worlds:
            engine.close(world)


def walk(
    engine: Engine, starts: Sequence[Start], actions: np.ndarray, seeds: Sequence[int] | np.ndarray, hold: bool = False
) -> Iterator[np.ndarray]:
    """Step worlds side by side, past any end; yield the frames of each step, uint8 [N, H, W, 3].

    Args:
        starts: N of them, at most GROUP.
        actions: encoded float32 [N, S, A].
        hold: keep the named variables as they stood at the start.
    """
    with opened(engine, starts, seeds) as worlds:
        held = [world.variables.copy() for world in worlds]
        for step in range(actions.shape[1]):
            if hold:
                for world, values in zip(worlds, held, strict=True):
                    world.variables[:] = values
            blocks = engine.step(worlds, [Condition.of(row[None]) for row in actions[:, step]])
            yield np.stack([block.frames[-1] for block in blocks])


def dream(
    engine: Engine, starts: Sequence[Start], actions: np.ndarray, rng: np.random.Generator, title: str
) -> np.ndarray:
    """Frames uint8 [N, S, H, W, 3] that N starts lead to under encoded actions [N, S, A], past any end."""
    seeds = rng.integers(2**62, size=len(starts))
    out = np.zeros((*actions.shape[:2], *engine.spec.frame, 3), np.uint8)
    with tqdm(total=actions.shape[0] * actions.shape[1], desc=title, unit="step", leave=False) as bar:
        for i in range(0, len(starts), GROUP):
            group = slice(i, i + GROUP)
            for step, frames in enumerate(walk(engine, starts[group], actions[group], seeds[group])):
                out[group, step] = frames
                bar.update(len(frames))
    return out


def dream_rows(
    engine: Engine,
    episodes: Sequence[Episode],
    rows: Sequence[tuple[int, int]],
    steps: int,
    rng: np.random.Generator,
    title: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Dream on from (episode, row)s under the real actions.

    Returns:
        Real and dreamed frames of the steps after each row, both uint8 [N, steps, H, W, 3].
    """
    length = context_length(engine.spec)
    starts = [context(episodes[i], t, length) for i, t in rows]
    actions = np.stack([episodes[i].actions[t + 1 : t + 1 + steps] for i, t in rows])
    real = np.stack([episodes[i].frames[t + 1 : t + 1 + steps] for i, t in rows])
    return real, dream(engine, starts, actions, rng, title)


@torch.inference_mode()
def reconstruct(model: WorldModel, frames: np.ndarray, chunk: int = 32) -> np.ndarray:
    """Frames uint8 [..., H, W, 3] through the codec and back."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    out = np.zeros_like(flat)
    for i in range(0, len(flat), chunk):
        latents, _ = model.codec.encode(torch.from_numpy(flat[None, i : i + chunk]).to(model.device))
        out[i : i + chunk] = model.codec.decode(latents.float())[0][0].cpu().numpy()
    return out.reshape(frames.shape)
