"""The norm of the Wan2.1 VAE and its activation: a plain reference, and where there is a kernel, that.

Shapes: N worlds, C channels, T frames, H W their size.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(Protocol):
    """Writes silu(norm(x)) of [N, C, T, H, W] to `out` of that shape."""

    def __call__(self, x: Tensor, gamma: Tensor, out: Tensor) -> None: ...


class Norm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels, in float32 at least."""

    def __init__(self, channels: int, dims: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return normed(x, self.gamma)

    def activate(self, x: Tensor, out: Tensor) -> None:
        """Write silu(norm(x)) to `out`, a part of what a convolution reads: contiguous frames, channels last."""
        run = activate_reference if x.requires_grad else choose(x.device, x.dtype)
        run(x, self.gamma, out)


def normed(x: Tensor, gamma: Tensor) -> Tensor:
    wide = x.float() if x.dtype.itemsize < 4 else x
    return (F.normalize(wide, dim=1) * len(gamma) ** 0.5).to(x.dtype) * gamma


def activate_reference(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    out.copy_(F.silu(normed(x, gamma)))


@cache
def choose(device: torch.device, dtype: torch.dtype) -> Activation:
    """The kernel for such tensors; the reference where there is none, and in float32, which is for comparisons."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or not find_spec("triton"):
        return activate_reference
    from engine.codecs.norm_kernel import activate_triton

    return activate_triton
