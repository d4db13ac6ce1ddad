"""Rotary positions as published models have them: interleaved pairs turn, angles come from integers, no table ends.

Angles are taken in float64, once a pass. Knows torch and how a head's width is split; does not know layers.

Legend: N worlds, T latent frames, S tokens of a frame, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kv.view import ALL
from engine.models.seam import WHOLE, Seam
from engine.rope import axis_widths

# Cosines and sines, each [N, T, S or 1, 1, pairs]; a function makes them of integer positions [N, T].
Turns = tuple[Tensor, Tensor]
TurnsOf = Callable[[Tensor], Turns]


def frequencies(width: int, base: float, device: torch.device) -> Tensor:
    """base^(-2 j / width) for every pair j of a width, float64 [width / 2]."""
    return base ** -(torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)


def time_turns(positions: Tensor, width: int, turning: int, base: float) -> Turns:
    """The turns of positions [N, T] in time alone, for all tokens of a frame: float64 [N, T, 1, 1, width / 2].

    Of a head's width the first `turning` channels turn, the others stay.
    """
    rates = F.pad(frequencies(turning, base, positions.device), (0, (width - turning) // 2))
    angles = positions.double()[:, :, None, None, None] * rates
    return angles.cos(), angles.sin()


def grid_turns(positions: Tensor, grid: tuple[int, int], width: int, base: float) -> Turns:
    """The turns of every token of a (rows, columns) grid at positions [N, T]: float64 [N, T, S, 1, width / 2].

    The width is split over time, rows and columns (`engine.rope.axis_widths`); each has frequencies of its own width.
    Cosines are taken of all angles together: a CPU's differ in the last bit with the place in a row of odd length.
    """
    shape = (*positions.shape, *grid, -1)
    rows, columns = (torch.arange(size, device=positions.device) for size in grid)
    axes = (positions[:, :, None, None], rows[:, None], columns)
    parts = [
        (axis.double()[..., None] * frequencies(w, base, positions.device)).expand(shape)
        for axis, w in zip(axes, axis_widths(width), strict=True)
    ]
    angles = torch.cat(parts, dim=-1).flatten(2, 3).unsqueeze(3)
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (2j, 2j + 1) of the last axis, in the precision of the cosines; comes back in that of `x`."""
    a, b = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class Rotary:
    """Turns queries and keys of one pass (an `engine.kv.view.Turn`): the angles are computed once for all layers.

    Args:
        positions: integer positions [N, T] of the latent frames in flight.
        turns: makes cosines and sines of positions.
        dtype: precision of the rotation.
        seam: which of a frame's tokens the pass computes, where the turns are of tokens.
    """

    def __init__(self, positions: Tensor, turns: TurnsOf, dtype: torch.dtype, seam: Seam = WHOLE):
        self.of, self.dtype = turns, dtype
        cos, sin = self._turns(positions)
        self.own = seam.cut(cos, 2), seam.cut(sin, 2)
        self.other: tuple[Tensor, Turns] | None = None

    def __call__(self, keys: Tensor, positions: Tensor | None = None, tokens: slice = ALL) -> Tensor:
        """Keys or queries [N, T S, h, d], turned: at the pass's own positions, or at others [N, T] (see Turn)."""
        cos, sin = self.own if positions is None else (x[:, :, tokens] for x in self._at(positions))
        return rotate_pairs(keys.unflatten(1, (cos.shape[1], -1)), cos, sin).flatten(1, 2)

    def _at(self, positions: Tensor) -> Turns:
        """Every layer of a pass asks for the same positions: they are kept until others come."""
        if self.other is None or self.other[0] is not positions:
            self.other = (positions, self._turns(positions))
        return self.other[1]

    def _turns(self, positions: Tensor) -> Turns:
        cos, sin = self.of(positions)
        return cos.to(self.dtype), sin.to(self.dtype)
