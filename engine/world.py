"""World: the state of one simulation, as a value. The engine holds weights and the pool, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from engine.conditioning import Context
from engine.kv.policy import PageTable
from engine.noise import Noise, SeededNoise


@dataclass
class World:
    """One live simulation.

    Attributes:
        noise: where its noise comes from, keyed by (block, draw).
        table: its pages in the pool.
        block: how many blocks it has dreamed since it was opened; keys its noise.
        latents: the last clean latents, float32 [K, C, h, w], on the engine's device: a block, or as many as the
            model may want again.
        context: the prompt or image that steers it.
        actions: encoded actions of the last frames, [P, A], where blocks are shown those before them.
        tail: its last frames, uint8 [P, H, W, 3], where a history begins anew from them.
        flight: latents of the blocks in flight between two steps, [B F, C, h, w], oldest first, where there are any:
            the first is finished, and not yet history.
        prompts: what each of them reads; None for no prompt.
        given: latents [K, C, h, w] that the first block in flight begins with, as long as it is.
        horizon: blocks that there will be in all, where the model is told how many are to come.
        reserved: pages that it was admitted with, on the device and on the host.
        codec_state: streaming state of the codec's decoder.
        variables: named variables as they stand, float64 [V]; a caller may set them.
        head_state: what the heads keep of the last committed block, [hidden].
        ended: the model has said that the episode ended with the last step.
        open: False once its pages went back.
    """

    noise: Noise
    table: PageTable
    variables: np.ndarray
    block: int = 0
    latents: Tensor | None = None
    context: Context | None = None
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    tail: Tensor | None = None
    flight: Tensor | None = None
    prompts: tuple[Context | None, ...] = ()
    given: Tensor | None = None
    horizon: int | None = None
    reserved: tuple[int, int] = (0, 0)
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
    """Where a world begins: real frames and what led from each to the next, or latents, or nothing but a context.

    Attributes:
        frames: uint8 [K, H, W, 3]; K >= 1 but for published models, which may begin from a prompt alone.
        actions: encoded actions float32 [K, A], row k led to frame k; zeros where none did.
        variables: raw named variables float [K, V], as they stood at each frame.
        context: a prompt or an image (see `Engine.contextualise`).
        latents: float32 [K, C, h, w], in place of frames.
        horizon: blocks that there will be in all, for models that are told how many are to come; they know of no end
            without.
    """

    frames: np.ndarray
    actions: np.ndarray
    variables: np.ndarray
    context: Context | None = None
    latents: Tensor | None = None
    horizon: int | None = None

    @classmethod
    def of(cls, context: Context | None = None, latents: Tensor | None = None, horizon: int | None = None) -> Start:
        """A published model's start: a context, and latents that go before."""
        count = 0 if latents is None else len(latents)
        none = np.zeros((count, 0), np.float32)
        return cls(np.zeros((0, 0, 0, 3), np.uint8), none, none, context, latents, horizon)


@dataclass(frozen=True)
class Block:
    """What one step made.

    Attributes:
        pictures: uint8 [T, H, W, 3], on the engine's device.
        reward: of the step; where it ended, the model's estimate of the last reward.
        end_probability: that the episode ended with this step, asked before it was dreamed.
        terminated: drawn from that probability with the world's noise.
        variables: named variables after the step, float64 [V].
        expected: what they were expected to be before the step's changes were drawn, float64 [V].
    """

    pictures: Tensor
    reward: float
    end_probability: float
    terminated: bool
    variables: np.ndarray
    expected: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """The pictures as NumPy, uint8 [T, H, W, 3]."""
        return self.pictures.cpu().numpy()
