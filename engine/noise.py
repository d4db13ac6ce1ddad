"""Noise as an argument of a world: counter-based, keyed by (world seed, block, draw), evaluated on the CPU.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), its key the
world's seed and its counter (block, draw); normals come from the Box-Muller transform in float64. So a draw does
not depend on the device, the batch, or what was drawn before it. Imports nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Draws below this number are latents, one a pass; the others are single uniforms of the heads.
END, REWARD, VARIABLES = 1_000, 1_001, 1_002


def philox(seed: int, block: int, draw: int, count: int) -> np.ndarray:
    """`count` uint64 words of the stream (seed, block, draw)."""
    counter = np.array([0, 0, draw % 2**64, block % 2**64], dtype=np.uint64)
    return np.random.Philox(key=seed % 2**64, counter=counter).random_raw(count)


def uniforms(seed: int, block: int, draw: int, count: int) -> np.ndarray:
    """float64 [count] in (0, 1)."""
    return ((philox(seed, block, draw, count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed: int, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of `shape`, on the CPU (Box-Muller)."""
    count = math.prod(shape)
    half = (count + 1) // 2
    u = uniforms(seed, block, draw, 2 * half)
    radius, angle = np.sqrt(-2.0 * np.log(u[:half])), 2.0 * np.pi * u[half:]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


class Noise(Protocol):
    """Where a world's noise comes from, keyed by (block, draw)."""

    @property
    def seed(self) -> int: ...

    def latent(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor: ...

    def uniform(self, block: int, draw: int, count: int = 1) -> np.ndarray: ...


@dataclass(frozen=True)
class SeededNoise:
    """The noise of one world: a value, shared by nothing."""

    seed: int

    def latent(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        """Normal float32 of `shape` for pass `draw` of a block."""
        return normals(self.seed, block, draw, shape)

    def uniform(self, block: int, draw: int, count: int = 1) -> np.ndarray:
        """float64 [count] in (0, 1)."""
        return uniforms(self.seed, block, draw, count)


@dataclass(frozen=True)
class GivenNoise:
    """Noise from recorded tensors, for replays: latents by (block, draw), the heads' uniforms from a seed.

    Raises:
        ValueError: on a draw that was not given, or of another shape.
    """

    latents: Mapping[tuple[int, int], Tensor]
    seed: int = field(default=0)

    def latent(self, block: int, draw: int, shape: tuple[int, ...]) -> Tensor:
        given = self.latents.get((block, draw))
        if given is None or given.shape != torch.Size(shape):
            found = "none" if given is None else list(given.shape)
            raise ValueError(f"noise of block {block}, draw {draw}: expected {list(shape)}, given {found}")
        return given

    def uniform(self, block: int, draw: int, count: int = 1) -> np.ndarray:
        return uniforms(self.seed, block, draw, count)
