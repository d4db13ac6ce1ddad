"""Layers of a video codec on a strip of the picture: what a convolution or an attention sees beyond it is fetched.

A strip is a run of rows over the whole width, and each rank has one. A convolution gets the rows next to its strip from
the neighbours, zeros at the picture's edge, and pads no rows itself; attention over a picture gets the keys and values
of all strips. So a strip comes out as it stands in the whole picture, but for the order of sums. Knows kinds of layers,
and no codec; copies share weights with what they are made of.

Shapes: N pictures or videos, C channels, T frames, H W a strip's height and width, S places of a strip.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from engine.codecs.history import LAYOUT, History
from engine.codecs.video import as_pictures, as_video
from engine.codecs.wan_vae_layers import Attention, CausalConv3d
from engine.parallel.layout import split
from engine.parallel.mesh import Mesh
from engine.swap import swap_linears

M = TypeVar("M", bound=nn.Module)

# Names of transfers; tiles_costs.py says how many bytes they have.
BORDERS, PLACES = "rows of neighbours", "keys and values of strips"


@dataclass(frozen=True, eq=False)
class Cut:
    """How pictures of one height are cut into strips.

    Attributes:
        rows: of latents in each rank's strip, from the top down; at least 1.
    """

    mesh: Mesh
    rows: tuple[int, ...]

    @classmethod
    def of(cls, mesh: Mesh, rows: int) -> Cut:
        return cls(mesh, tuple(split(rows, mesh.ranks)))

    @property
    def mine(self) -> int:
        return self.rows[self.mesh.rank]

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This rank's strip of whole pictures, which have some rows for each of the latents'."""
        each = x.shape[dim] // sum(self.rows)
        return x.narrow(dim, each * sum(self.rows[: self.mesh.rank]), each * self.mine)

    def whole(self, name: str, strips: Sequence[Tensor], dim: int) -> list[Tensor]:
        """Whole pictures, on all ranks, of each rank's strips: tensors of one type, in one call."""
        shapes = [[resized(x.shape, dim, x.shape[dim] // self.mine * rows) for x in strips] for rows in self.rows]
        sizes = [[prod(shape) for shape in of_rank] for of_rank in shapes]
        parts = self.mesh.gather(name, torch.cat([x.reshape(-1) for x in strips]), [sum(n) for n in sizes])
        pieces = [
            [x.view(shape) for x, shape in zip(part.split(lengths), of_rank, strict=True)]
            for part, lengths, of_rank in zip(parts, sizes, shapes, strict=True)
        ]
        return [torch.cat(column, dim) for column in zip(*pieces, strict=True)]

    def bordered(self, x: Tensor, rows: int) -> Tensor:
        """[N, C, ..., H, W] -> [N, C, ..., rows + H + rows, W]."""
        size = resized(x.shape, -2, x.shape[-2] + 2 * rows)
        layout = LAYOUT if x.ndim == 5 else torch.channels_last
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
        out[..., rows:-rows, :] = x
        above, below = self._beyond(lines(x)[..., :rows, :, :], lines(x)[..., -rows:, :, :])
        put(lines(out)[..., :rows, :, :], above)
        put(lines(out)[..., -rows:, :, :], below)
        return out

    def followed(self, x: Tensor, rows: int) -> Tensor:
        """[N, C, ..., H + rows, W] whose last rows are padding, with the rows below in their place."""
        x = x.clone()
        _, below = self._beyond(lines(x)[..., :rows, :, :], None)
        if below is not None:
            put(lines(x)[..., -rows:, :, :], below)
        return x

    def _beyond(self, first: Tensor, last: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Rows of the strips above and below, None where there are none; `last` None hands rows upwards only."""
        rank, out, into = self.mesh.rank, dict[int, Tensor](), dict[int, Tensor]()
        if rank > 0:
            out[rank - 1] = first.contiguous()
            if last is not None:
                into[rank - 1] = torch.empty_like(out[rank - 1])
        if rank < self.mesh.ranks - 1:
            into[rank + 1] = torch.empty_like(first, memory_format=torch.contiguous_format)
            if last is not None:
                out[rank + 1] = last.contiguous()
        self.mesh.trade(BORDERS, out, into)
        return into.get(rank - 1), into.get(rank + 1)


def lines(x: Tensor) -> Tensor:
    """[N, C, ..., H, W] as [N, ..., H, W, C]: in memory, as layers of codecs have their pictures, row after row."""
    return x.movedim(1, -1)


def put(place: Tensor, rows: Tensor | None) -> None:
    """Write rows, or zeros where there are none."""
    if rows is None:
        place.zero_()
    else:
        place.copy_(rows)


def resized(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    """A shape with another length of one axis."""
    sizes = list(shape)
    sizes[dim] = size
    return tuple(sizes)


class StripAttention(nn.Module):
    """`wan_vae_layers.Attention` of a strip's places to the whole picture's."""

    def __init__(self, attention: Attention, cut: Cut):
        super().__init__()
        self.norm, self.to_qkv, self.proj, self.cut = attention.norm, attention.to_qkv, attention.proj, cut

    def forward(self, x: Tensor, history: History) -> Tensor:
        frames = as_pictures(x)
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "b c h w -> b 1 (h w) c").chunk(3, dim=-1)
        k, v = self.cut.whole(PLACES, [k, v], dim=-2)
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + as_video(self.proj(rearrange(seen, "b 1 (h w) c -> b c h w", h=frames.shape[-2])), len(x))


def on_strip(module: M, cut: Cut) -> M:
    """A module of convolutions and attention over pictures, for strips of them."""

    def made(layer: nn.Module) -> nn.Module:
        if isinstance(layer, Attention):
            return StripAttention(layer, cut)
        assert isinstance(layer, nn.Conv2d | nn.Conv3d)
        return layer if layer.kernel_size[-2] == 1 else bordered(layer, cut)

    return swap_linears(module, made, (nn.Conv2d, CausalConv3d, Attention))


def bordered(conv: nn.Conv2d | nn.Conv3d, cut: Cut) -> nn.Module:
    """A convolution whose rows beyond the strip are the neighbours'; of its width it still pads the edges.

    One that pads no rows was given a picture with rows of zeros below it (the Wan2.1 encoder's halvings).
    """
    made = copy.deepcopy(conv, {id(x): x for x in conv.parameters()})
    assert isinstance(conv.padding, tuple)
    *deep, rows, wide = conv.padding
    if rows:
        made.padding = (*deep, 0, wide)
        made.register_forward_pre_hook(lambda _, x: (cut.bordered(x[0], rows),))
    else:
        below = conv.kernel_size[-2] - conv.stride[-2]
        made.register_forward_pre_hook(lambda _, x: (cut.followed(x[0], below),))
    return made
