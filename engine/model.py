"""WorldModel: a spec with its denoiser, codec and heads, and the protocols that those keep."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.conditioners.conditioner import Conditioner
from engine.conditioning import Condition
from engine.kv.share import WHOLE, Share
from engine.models.heads import Heads, Silent
from engine.spec import WorldSpec


class Denoiser(Protocol):
    """`(latents [N,F,C,H,W], times [N,F], positions [N,F], condition, view) -> prediction, features`."""

    def __call__(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: Any
    ) -> tuple[Tensor, Tensor]: ...


# The streaming state of a codec for each of N worlds; None where there is none yet, or the codec has none.
States = list[Any] | None


class Codec(Protocol):
    """Latents [N, F, C, h, w] <-> frames [N, T, H, W, 3], streaming: states go in and come out; they are worlds'."""

    frames_per_latent: int

    def encode(self, frames: Tensor, states: States = None) -> tuple[Tensor, States]: ...

    def decode(self, latents: Tensor, states: States = None) -> tuple[Tensor | list[Tensor], States]:
        """Frames; a list of [T, H, W, 3] where worlds of different ages get different T."""
        ...


@dataclass
class WorldModel:
    """Weights and what they mean.

    Attributes:
        dtype: precision of the denoiser, codec and heads; latents between passes stay fp32.
        conditioner: turns prompts and pictures into embeddings, where the denoiser reads such.
        share: what is kept here of every page, where several ranks share them.
        origin: the model as it was before ranks shared it.
    """

    spec: WorldSpec
    denoiser: Denoiser
    codec: Codec
    heads: Heads | Silent
    device: torch.device
    dtype: torch.dtype
    conditioner: Conditioner | None = None
    share: Share = WHOLE
    origin: WorldModel | None = None

    @cached_property
    def identity(self) -> str:
        """sha256 of the spec, the precision and every weight: worlds of one model can be told from another's."""
        if self.origin is not None:
            return self.origin.identity
        digest = hashlib.sha256(json.dumps([self.spec.to_dict(), str(self.dtype)], sort_keys=True).encode())
        for part in (self.denoiser, self.codec, self.heads):
            for name, x in sorted(part.state_dict().items()) if isinstance(part, nn.Module) else ():
                digest.update(name.encode())
                digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
