"""World: the state of one simulation, as a value. The engine holds weights and the pool, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from engine.kv.policy import PageTable
from engine.noise import SeededNoise


@dataclass
class World:
    """One live simulation.

    Attributes:
        noise: where its noise comes from, keyed by (block, draw).
        table: its pages in the pool.
        block: how many blocks it has dreamed since it was opened; keys its noise.
        latents: the last clean block, float32 [F, C, h, w], on the engine's device.
        codec_state: streaming state of the codec's decoder.
        variables: named variables as they stand, float64 [V]; a caller may set them.
        head_state: what the heads keep of the last committed block, [hidden].
        ended: the model has said that the episode ended with the last step.
        open: False once its pages went back.
    """

    noise: SeededNoise
    table: PageTable
    variables: np.ndarray
    block: int = 0
    latents: Tensor | None = None
    codec_state: Any = None
    head_state: Tensor | None = None
    ended: bool = False
    open: bool = True

    def fork(self, seed: int | None = None) -> World:
        """A world with the same past and a future of its own: the same noise, or that of another seed.

        Tensors are shared: an engine replaces them, and writes to none.
        """
        noise = self.noise if seed is None else SeededNoise(seed)
        return replace(self, noise=noise, table=self.table.copy(), variables=self.variables.copy())


@dataclass(frozen=True)
class Start:
    """Where a world begins: real frames and what led from each to the next.

    Attributes:
        frames: uint8 [K, H, W, 3], K >= 1.
        actions: encoded actions float32 [K, A], row k led to frame k; zeros where none did.
        variables: raw named variables float [K, V], as they stood at each frame.
    """

    frames: np.ndarray
    actions: np.ndarray
    variables: np.ndarray


@dataclass(frozen=True)
class Block:
    """What one step made.

    Attributes:
        pictures: uint8 [T, H, W, 3], on the engine's device.
        reward: of the step; where it ended, the model's estimate of the last reward.
        end_probability: that the episode ended with this step, asked before it was dreamed.
        terminated: drawn from that probability with the world's noise.
        variables: named variables after the step, float64 [V].
    """

    pictures: Tensor
    reward: float
    end_probability: float
    terminated: bool
    variables: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """The pictures as NumPy, uint8 [T, H, W, 3]."""
        return self.pictures.cpu().numpy()
