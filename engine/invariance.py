"""The same bits for a world whoever is beside it: linears and the codec swapped, from outside the model.

A matrix product's sums may be split in another order when it has more rows, so a world's numbers would depend on how
many worlds share a call. Here every world's rows go through a product of their own, of the shape that the world has
when it is alone; all else in a denoiser works row by row or world by world already. Weights are shared, not copied.

Knows torch and the model's protocols; does not know which layers a model has.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.fp8 import KINDS
from engine.model import Codec, States, WorldModel
from engine.models.magi_layers import WideLinear
from engine.packing import PackedLinear
from engine.swap import swap_linears

LINEARS = (nn.Linear, PackedLinear, WideLinear, *KINDS)


class WorldLinear(nn.Module):
    """A linear layer over [N, ...], one product a world."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return self.linear(x)
        return torch.cat([self.linear(row) for row in x.split(1)])


class WorldCodec:
    """A codec that decodes one world after another."""

    def __init__(self, codec: Codec):
        self.codec = codec
        self.frames_per_latent = codec.frames_per_latent

    def encode(self, frames: Tensor, states: States = None) -> tuple[Tensor, States]:
        return self.codec.encode(frames, states)

    def decode(self, latents: Tensor, states: States = None) -> tuple[Tensor | list[Tensor], States]:
        """See `engine.model.Codec`."""
        states = states or [None] * len(latents)
        made = [self.codec.decode(row, [state]) for row, state in zip(latents.split(1), states, strict=True)]
        states = [(state or [None])[0] for _, state in made]
        frames = [x for pictures, _ in made for x in pictures]
        alike = len({len(x) for x in frames}) == 1
        return torch.stack(frames) if alike else frames, states


def invariant(model: WorldModel) -> WorldModel:
    """The model with batch-invariant products."""
    assert isinstance(model.denoiser, nn.Module)
    denoiser = swap_linears(model.denoiser, WorldLinear, LINEARS)
    heads = swap_linears(model.heads, WorldLinear, LINEARS)
    return replace(model, denoiser=denoiser, heads=heads, codec=WorldCodec(model.codec))
