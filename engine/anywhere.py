"""What is asked of an engine from outside, wherever it runs: in this process, or on ranks of its own.

Knows both kinds of engine; does nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from engine import scenes, uncertainty
from engine.conditioning import Condition, Context
from engine.engine import Engine
from engine.scenes import Picture
from engine.workers import ShardedEngine
from engine.world import Start, World

AnyEngine: TypeAlias = Engine | ShardedEngine


def prompt_context(sim: AnyEngine, prompt: str, ending: bool = False) -> Context:
    """See `engine.scenes.prompt_context`."""
    if isinstance(sim, ShardedEngine):
        return sim.prompt_context(prompt, ending)
    return scenes.prompt_context(sim, prompt, ending)


def scene(
    sim: AnyEngine, prompt: str | None = None, image: Picture | None = None, frames: np.ndarray | None = None
) -> Start:
    """See `engine.scenes.scene`."""
    if isinstance(sim, ShardedEngine):
        return sim.scene(prompt, image, frames)
    return scenes.scene(sim, prompt, image, frames)


def picture_of(sim: AnyEngine, image: Picture) -> Tensor:
    """See `engine.scenes.picture_of`."""
    return scenes.picture_of(cast(Engine, sim), image)  # asks for the size of a frame


def held(sim: AnyEngine, worlds: Sequence[World]) -> AbstractContextManager[list[World]]:
    """See `engine.uncertainty.held`."""
    return uncertainty.held(cast(Engine, sim), worlds)  # forks and closes


def second_opinion(
    sim: AnyEngine, before: Sequence[World], conditions: Sequence[Condition], latents: Tensor, level: float
) -> Tensor:
    """See `engine.uncertainty.second_opinion`."""
    if isinstance(sim, ShardedEngine):
        return sim.second_opinion(before, conditions, latents, level)
    return uncertainty.second_opinion(sim, before, conditions, latents, level)


def widen(sim: AnyEngine, pages: int) -> None:
    """Make room for so many pages beyond those that worlds have reserved."""
    if isinstance(sim, ShardedEngine):
        sim.widen(pages)
    else:
        sim.pool.grow(sim.pool.reserved + pages)


def device_of(sim: AnyEngine) -> torch.device:
    """Where its tensors are, or its caller may have them."""
    return sim.device if isinstance(sim, ShardedEngine) else sim.model.device
