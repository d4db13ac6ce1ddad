"""The same bits for a world whoever is beside it: linears and the codec swapped, from outside the model.

A matrix product's sums may be split in another order when it has more rows, so a world's numbers would depend on how
many worlds share a call. Here every world's rows go through a product of their own, of the shape that the world has
when it is alone; all else in a denoiser works row by row or world by world already. Weights are shared, not copied.

Knows torch and the model's protocols; does not know which layers a model has.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model import Codec, States, WorldModel

M = TypeVar("M", bound=nn.Module)


class WorldLinear(nn.Module):
    """A linear layer over [N, ...], one product a world."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            return F.linear(x, self.weight, self.bias)
        return torch.cat([F.linear(row, self.weight, self.bias) for row in x.split(1)])


class WorldCodec:
    """A codec that decodes one world after another."""

    def __init__(self, codec: Codec):
        self.codec = codec
        self.frames_per_latent = codec.frames_per_latent

    def encode(self, frames: Tensor, states: States = None) -> tuple[Tensor, States]:
        return self.codec.encode(frames, states)

    def decode(self, latents: Tensor, states: States = None) -> tuple[Tensor, States]:
        """See `engine.model.Codec`."""
        states = states or [None] * len(latents)
        made = [self.codec.decode(row, [state]) for row, state in zip(latents.split(1), states, strict=True)]
        return torch.cat([frames for frames, _ in made]), [(state or [None])[0] for _, state in made]


def swapped(module: M) -> M:
    """A copy of a module tree that shares its weights, with every nn.Linear swapped for a WorldLinear."""
    shared = {id(t): t for t in chain(module.parameters(), module.buffers())}
    made = copy.deepcopy(module, shared)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, WorldLinear(child))
    return made


def invariant(model: WorldModel) -> WorldModel:
    """The model with batch-invariant products."""
    assert isinstance(model.denoiser, nn.Module)
    return replace(model, denoiser=swapped(model.denoiser), heads=swapped(model.heads), codec=WorldCodec(model.codec))
