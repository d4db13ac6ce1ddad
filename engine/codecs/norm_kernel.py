"""The Triton kernel of silu(norm(x)). Imported only where Triton is installed; knows pointers and strides.

One pass instead of eight over tensors that are a video in size: a program reads some places' channels, normalises
them in float32 and writes them where the next convolution reads them, behind its past.

Shapes: N worlds, C channels, T frames, H W their size; a row is one place of one frame.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.codecs.history import LAYOUT

# Numbers that a program holds.
TILE = 4096


@triton.jit
def norm_silu(
    out, x, gamma, out_stride, x_stride, num_rows, scale, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows of one world: `x` and `out` [num_rows, C], each row's numbers side by side; strides are those of worlds."""
    world = tl.program_id(1).to(tl.int64)
    rows, columns = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    places = rows[:, None] * C + columns[None, :]
    inside = (rows < num_rows)[:, None] & (columns < C)[None, :]
    values = tl.load(x + world * x_stride + places, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(values * values, 1))
    gains = tl.load(gamma + columns, mask=columns < C, other=0.0).to(tl.float32)
    values = values / tl.maximum(length, 1e-12)[:, None] * scale * gains[None, :]
    values = values / (1.0 + tl.exp(-values))
    tl.store(out + world * out_stride + places, values.to(out.dtype.element_ty), mask=inside)


def launch(x: Tensor, gamma: Tensor, out: Tensor) -> tuple[tuple[int, int], list[Any], dict[str, Any]]:
    """The grid, arguments and options of `norm_silu`."""
    n, c, t, h, w = x.shape
    x = x.contiguous(memory_format=LAYOUT)
    assert out.stride()[1:] == (1, h * w * c, w * c, c), "frames to write are one after another, channels last"
    columns = triton.next_power_of_2(c)
    options = {"C": c, "ROWS": max(1, TILE // columns), "COLUMNS": columns, "num_warps": 4}
    arguments = [out, x, gamma, out.stride(0), x.stride(0), t * h * w, c**0.5]
    return (triton.cdiv(t * h * w, options["ROWS"]), n), arguments, options


def activate_triton(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """silu(norm(x)) in one launch; see `engine.codecs.norm.Activation` for the arguments."""
    grid, arguments, options = launch(x, gamma, out)
    with torch.cuda.device_of(x):
        norm_silu[grid](*arguments, **options)
