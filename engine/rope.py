"""Rotary positions (Su et al., 2021) in three axes, computed from integers: no table, so no table ends.

Angles are taken in float64, so a world a million blocks old still knows where it is. Imports nothing of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_widths(width: int) -> tuple[int, int, int]:
    """Split an even head width over (time, height, width), each even, the remainder to time."""
    side = width // 6 * 2
    return width - 2 * side, side, side


def rotations(positions: Tensor, grid: tuple[int, int], width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token of some latent frames.

    Args:
        positions: integer time positions [N, F].
        grid: (rows, columns) of tokens in a latent frame.
        width: head width d, even.
        base: the slowest frequency is 1 / base.

    Returns:
        cos, sin: float32 [N, F * rows * columns, 1, d]; both halves of the width turn by the same angles, and the
        sines of the first half are negative, as `rotate` wants them.
    """
    n, f = positions.shape
    rows, columns = grid
    t = positions.double()[:, :, None, None].expand(n, f, rows, columns)
    y = torch.arange(rows, device=t.device).double()[:, None].expand(n, f, rows, columns)
    x = torch.arange(columns, device=t.device).double().expand(n, f, rows, columns)
    parts = [
        axis.flatten(1)[..., None] * base ** -torch.arange(0, 1, 2 / d, device=t.device, dtype=torch.float64)
        for axis, d in zip((t, y, x), axis_widths(width), strict=True)
    ]
    angles = torch.cat(parts, dim=-1)[:, :, None]
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of [N, S, ..., d] against each other: (a cos - b sin, b cos + a sin)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
