"""A clip cut into overlapping tiles, run through a model tile by tile, and put together with linear blends.

Latents and pixels are cut alike: every `Cut` says where the tiles of one axis begin and how much of what they make is
mixed with the tile before and shown. Source: SandAI-org/MAGI-1, inference/infra/parallelism/tile_parallel.py. Does not
know what the model is, nor worlds.

Shapes: N worlds, B tiles of any worlds, C channels, T H W a clip's frames and size, t h w a tile's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice, product
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of tiles; by default the published pipeline's.

    Attributes:
        pixels, frames: size of a tile.
        overlap: share of a tile's height and width that it has in common with the next.
        temporal_overlap: the same of its frames.
    """

    pixels: int = 256
    frames: int = 12
    overlap: float = 0.25
    temporal_overlap: float = 0.0

    def __post_init__(self) -> None:
        for share in (self.overlap, self.temporal_overlap):
            if not 0 <= share < 1:
                raise ValueError(f"overlap {share}: expected a share of a tile, from 0 up to 1")


@dataclass(frozen=True)
class Cut:
    """One axis, cut: a tile begins every `stride`, takes `size`, and blends `blend` of what it makes, at most.

    Attributes:
        limit: of what a tile makes, as much is shown; the next tile makes the rest.
        made: how much a tile of some length makes.
        joins: what is shown is as long as the stride, so that the picture does not jump between tiles.
    """

    size: int
    stride: int
    blend: int
    limit: int
    made: Callable[[int], int]
    joins: bool

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"tiles of {self.size} with this overlap never move on: make tiles larger or overlap less")

    def pieces(self, length: int) -> list[int]:
        """Lengths of the tiles of an axis."""
        return [min(self.size, length - start) for start in range(0, length, self.stride)]

    def shown(self, length: int) -> list[int]:
        """How much each tile of an axis gives to the result."""
        return [min(self.limit, self.made(n)) for n in self.pieces(length)]

    def unfinished(self, length: int) -> int:
        """Where the first tile begins that a longer clip would change, or the one before, where it blends with that."""
        whole = 1 + (length - self.size) // self.stride if length >= self.size else 0
        return self.stride * (max(whole - 1, 0) if self.blend else whole)

    def check(self, length: int) -> None:
        """Raises ValueError where tiles of an axis do not join."""
        if length > self.stride and not self.joins:
            raise ValueError(
                f"the tiling does not divide a length of {length}: tiles of {self.size} that begin every {self.stride} "
                "do not overlap by whole latents. Take tiles and overlaps of whole latents"
            )


# (run, x, cuts, at_once) -> what `run` makes of every tile, in order; see `made`.
MakeTiles = Callable[[Callable[[Tensor], Tensor], Tensor, Sequence[Cut], int], Iterator[Tensor]]


def cut_latents(tile: int, overlap: float, scale: int) -> Cut:
    """Tiles of an axis of latents, each of which makes `scale` pixels. Args: tile: in pixels."""
    size = whole_latents(tile, scale)
    stride, blend = int(size * (1 - overlap)), int(size * scale * overlap)
    limit = size * scale - blend
    return Cut(size, stride, blend, limit, lambda n: n * scale, joins=limit == stride * scale)


def cut_pixels(tile: int, overlap: float, scale: int) -> Cut:
    """Tiles of an axis of pixels, `scale` of which make a latent."""
    size = whole_latents(tile, scale)
    stride, blend = int(tile * (1 - overlap)), int(size * overlap)
    limit = size - blend
    return Cut(tile, stride, blend, limit, lambda n: n // scale, joins=stride == limit * scale)


def whole_latents(tile: int, scale: int) -> int:
    if tile < scale:
        raise ValueError(f"tiles of {tile} are smaller than a latent, {scale}")
    return tile // scale


def tiled(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    cuts: Sequence[Cut],
    *,
    chained: bool,
    at_once: int,
    make: MakeTiles,
) -> Tensor:
    """[N, C, T, H, W] -> [N, C', ...], tile by tile.

    Beside the result, one row of tiles is in memory; where tiles blend in time, those of one time.

    Args:
        run: [B, C, t, h, w] -> [B, C', t', h', w'].
        cuts: of time, height and width.
        chained: blend with a neighbour as it was blended itself; else as the model made it.
        at_once: the most tiles B that one run takes.
        make: runs the tiles, such as `made`.
    """
    shown = [cut.shown(length) for cut, length in zip(cuts, x.shape[2:], strict=True)]
    raws = make(run, x, cuts, at_once)
    ends = [list(accumulate(lengths)) for lengths in shown]
    out = torch.empty(0)
    for place, tile in blends(raws, [len(lengths) for lengths in shown], [cut.blend for cut in cuts], chained):
        if not any(place):
            out = tile.new_empty((*tile.shape[:2], *(axis[-1] for axis in ends)))
        sizes = [lengths[i] for i, lengths in zip(place, shown, strict=True)]
        spans = [slice(axis[i] - n, axis[i]) for i, n, axis in zip(place, sizes, ends, strict=True)]
        within(out, spans).copy_(within(tile, [slice(n) for n in sizes]))
    return out


def within(x: Tensor, sides: Sequence[slice]) -> Tensor:
    """A part of [N, C, T, H, W]."""
    t, h, w = sides
    return x[:, :, t, h, w]


def corners(cuts: Sequence[Cut], size: Sequence[int]) -> list[tuple[slice, ...]]:
    """Where the tiles lie: in time, then from top to bottom, then from left to right."""
    axes = [
        [slice(i * cut.stride, i * cut.stride + n) for i, n in enumerate(cut.pieces(length))]
        for cut, length in zip(cuts, size, strict=True)
    ]
    return list(product(*axes))


def made(run: Callable[[Tensor], Tensor], x: Tensor, cuts: Sequence[Cut], at_once: int) -> Iterator[Tensor]:
    """What the model makes of every tile, [N, C', t', h', w']."""
    return ran(run, x, corners(cuts, x.shape[2:]), at_once)


def ran(
    run: Callable[[Tensor], Tensor], x: Tensor, corners: Sequence[tuple[slice, ...]], at_once: int
) -> Iterator[Tensor]:
    """The same of some tiles; neighbours of one size run together."""
    for _, alike in groupby(corners, key=lambda corner: [side.stop - side.start for side in corner]):
        for some in batched(alike, max(1, at_once // len(x))):
            tiles = torch.cat([within(x, corner) for corner in some])
            yield from torch.cat([run(part) for part in tiles.split(at_once)]).split(len(x))


def blends(
    raws: Iterator[Tensor], counts: Sequence[int], extents: Sequence[int], chained: bool
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Places and tiles, each mixed with its neighbours before it in time, height and width."""
    back = (counts[1] * counts[2], counts[2], 1)  # so many tiles ago they were made
    before: deque[Tensor] = deque(maxlen=max([1, *(n for n, extent in zip(back, extents, strict=True) if extent)]))
    for place, raw in zip(product(*map(range, counts)), raws, strict=True):
        tile = raw
        for axis, extent in enumerate(extents):
            if extent and place[axis]:
                tile = blended(before[-back[axis]], tile, extent, axis + 2)
        before.append(tile if chained else raw)
        yield place, tile


def blended(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """A tile whose first places on an axis fade in from the last ones of the tile before; both may be narrower."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    fade = torch.arange(extent, device=tile.device) / extent
    fade = fade.view([extent if axis == dim else 1 for axis in range(tile.ndim)])
    first, rest = tile.split([extent, tile.shape[dim] - extent], dim)
    last = before.narrow(dim, before.shape[dim] - extent, extent)
    return torch.cat([(last * (1 - fade) + first * fade).to(tile.dtype), rest], dim)


def batched(x: Iterator[T], most: int) -> Iterator[list[T]]:
    """Lists of at most so many (itertools.batched of Python 3.12)."""
    while some := list(islice(x, most)):
        yield some
