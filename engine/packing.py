"""Linears for a CPU that computes in bf16: weights laid out once as its kernel wants them, not in every call.

oneDNN multiplies by blocks of pairs of rows; PyTorch's F.linear brings a plain weight into that order each time, which
at the 48 rows of a world costs 10 to 25 % of the product, and 35 % at a single row. The same kernel runs, so the bits
are the same. Knows torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.swap import M, swap_linears


class PackedLinear(nn.Module):
    """An nn.Linear in bf16 on a CPU, packed. The plain weight stays, for who reads the state."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        assert isinstance(linear, nn.Linear)
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing serves a model there."""
    here = device.type == "cpu" and dtype == torch.bfloat16
    return here and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_where_served(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """A copy of a module tree with its linears packed, or the tree itself where packing does not serve."""
    return swap_linears(module, PackedLinear) if packs(device, dtype) else module
