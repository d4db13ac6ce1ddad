"""Linears with fp8 weights and activations, as MAGI-1's quantised checkpoints hold them.

Activation scales are static. `TensorLinear` has one for all inputs; `SmoothLinear` one for each, folded into how the
weights were quantised (SmoothQuant, Xiao et al., 2023). On CUDA devices with fp8 units (8.9 and later) the product
runs on them, elsewhere in float32 on the decoded numbers. Knows torch only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
UNITS = (8, 9)  # compute capability from which on CUDA devices multiply fp8

# (codes [M, in], weight [out, in], scale [1]) -> bf16 [M, out]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class TensorLinear(nn.Module):
    """y = (codes(x / input_scale) W^T) input_scale weight_scale, the input's scale one number for all inputs."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, outputs, inputs).to(E4M3))
        self.register_buffer("weight_scale", torch.ones(1))
        self.register_buffer("input_scale", torch.ones(inputs))
        self.weight: Tensor
        self.weight_scale: Tensor
        self.input_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> bf16 [..., out]."""
        return multiply(codes(x, self.input_scale), self.weight[0], self.input_scale[:1] * self.weight_scale)


class SmoothLinear(nn.Module):
    """y = (codes(x / smooth_scale) W^T) input_scale weight_scale, with a smooth scale for each input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, outputs, inputs).to(E4M3))
        self.register_buffer("weight_scale", torch.ones(1))
        self.register_buffer("input_scale", torch.ones(1))
        self.register_buffer("smooth_scale", torch.ones(1, inputs))
        self.weight: Tensor
        self.weight_scale: Tensor
        self.input_scale: Tensor
        self.smooth_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> bf16 [..., out]."""
        return multiply(codes(x, self.smooth_scale[0]), self.weight[0], self.input_scale * self.weight_scale)


KINDS = (TensorLinear, SmoothLinear)


def codes(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale as e4m3, clamped to its range, and rounded to bf16 first as the published code does."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).bfloat16().to(E4M3)


def multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """codes [..., in] x weight [out, in] x scale [1] -> bf16 [..., out]."""
    return choose_product(x.device)(x.flatten(0, -2), weight, scale).unflatten(0, x.shape[:-1])


def choose_product(device: torch.device) -> Product:
    """The device's own fp8 product where it has one."""
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= UNITS
    return native_product if native else emulated_product


def native_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """On fp8 units: sums in float32, scaled once, rounded once. Sizes have to be multiples of 16."""
    return torch._scaled_mm(
        x, weight.t(), scale_a=scale, scale_b=torch.ones_like(scale), out_dtype=torch.bfloat16, use_fast_accum=False
    )


def emulated_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same in float32 on the decoded numbers."""
    return (F.linear(x.float(), weight.float()) * scale).bfloat16()
