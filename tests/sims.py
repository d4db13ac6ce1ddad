"""Engines of the tiny world, footage to open worlds with, and actions to step them by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from engine import Block, Condition, Engine, Start, World
from engine.loading import assemble
from tests.worlds import TINY, make_modules

FORWARD = ("num_steps", "policy", "max_worlds", "deterministic", "kv_dtype", "offload")


def make_engine(dtype: torch.dtype = torch.float32, seed: int = 0, **settings) -> Engine:
    """An Engine; settings that are not its own replace fields of the spec."""
    own = {name: settings.pop(name) for name in FORWARD if name in settings}
    spec = replace(TINY, **settings)
    return Engine(assemble(spec, make_modules(spec, seed), "cpu", dtype), **own)


def footage(count: int, seed: int = 0) -> Start:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    actions = np.eye(3, dtype=np.float32)[rng.integers(0, 3, count)]
    return Start(frames, actions, rng.uniform(20, 100, (count, 1)))


def act(*indices: int, block: int = 1) -> list[Condition]:
    return [Condition.of(np.eye(3, dtype=np.float32)[[i] * block]) for i in indices]


def roll(sim: Engine, world: World, count: int, seed: int = 1) -> list[Block]:
    """`count` steps under random actions."""
    actions = np.random.default_rng(seed).integers(0, 3, count)
    return [sim.step([world], act(int(a), block=sim.spec.block))[0] for a in actions]


def identical(first: list[Block], second: list[Block]) -> bool:
    """Whether two rollouts agree in every bit."""
    return len(first) == len(second) and all(
        np.array_equal(a.frames, b.frames)
        and (a.reward, a.end_probability, a.terminated) == (b.reward, b.end_probability, b.terminated)
        and np.array_equal(a.variables, b.variables)
        for a, b in zip(first, second, strict=True)
    )
