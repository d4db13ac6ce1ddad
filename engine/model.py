"""WorldModel: a spec with its denoiser, codec and heads, and the protocols that those keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.conditioning import Condition
from engine.models.heads import Heads
from engine.spec import WorldSpec


class Denoiser(Protocol):
    """`(latents [N,F,C,H,W], times [N,F], positions [N,F], condition, view) -> prediction, features`."""

    def __call__(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: Any
    ) -> tuple[Tensor, Tensor]: ...


class Codec(Protocol):
    """Latents <-> frames, streaming: the state goes in and comes out, and belongs to a world."""

    frames_per_latent: int

    def encode(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...

    def decode(self, latents: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...


@dataclass
class WorldModel:
    """Weights and what they mean.

    Attributes:
        dtype: precision of the denoiser, codec and heads; latents between passes stay fp32.
    """

    spec: WorldSpec
    denoiser: Denoiser
    codec: Codec
    heads: Heads
    device: torch.device
    dtype: torch.dtype
