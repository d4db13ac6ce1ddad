"""MAGI-1's VAE on several ranks: each runs some of the tiles that a clip is cut into, as the published code does.

Tiles know nothing of each other until they are blended, so nothing but what they make is sent, and every rank blends
all of it. Within a tile every token sees every other in each of 24 layers: cutting tiles up would send more than they
make. Sources: SandAI-org/MAGI-1, inference/infra/parallelism/tile_parallel.py (tiles over ranks); Graham 1969 (longest
first). Knows no worlds.

Shapes: N worlds, C channels, T H W a clip's frames and size, t h w a tile's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor

from engine.codecs.magi_vae import MagiVae, State
from engine.codecs.magi_vae_tiles import Cut, batched, corners, ran
from engine.parallel.mesh import Mesh

# Name of a transfer; tiles_costs.py says how many bytes it has.
TILES = "tiles"
Corner = tuple[slice, ...]


class TileCodec:
    """A MAGI-1 VAE that deals its tiles out to the ranks, which call it together; see `engine.model.Codec`.

    Attributes:
        given: the VAE, for one rank.
    """

    def __init__(self, vae: MagiVae, mesh: Mesh):
        self.given, self.frames_per_latent = vae, vae.frames_per_latent
        self.shared = copy.deepcopy(vae, {id(x): x for x in chain(vae.parameters(), vae.buffers())})
        self.shared.make_tiles = partial(made_on_ranks, mesh)

    def decode(self, latents: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor | list[Tensor], Any]:
        """As the VAE's, whole on every rank; states are as the VAE's too."""
        return self.shared.decode(latents, states)

    def encode(self, frames: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor | list[Tensor], Any]:
        """As the VAE's, whole on every rank."""
        return self.shared.encode(frames, states)


def made_on_ranks(
    mesh: Mesh, run: Callable[[Tensor], Tensor], x: Tensor, cuts: Sequence[Cut], at_once: int
) -> Iterator[Tensor]:
    """As `magi_vae_tiles.made`, in rounds of `at_once` tiles a rank."""
    for some in batched(iter(corners(cuts, x.shape[2:])), mesh.ranks * at_once):
        yield from one_round(mesh, run, x, cuts, some, at_once)


def one_round(
    mesh: Mesh,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    cuts: Sequence[Cut],
    places: Sequence[Corner],
    at_once: int,
) -> list[Tensor]:
    """What is made of some tiles, on every rank."""
    order = sorted(range(len(places)), key=lambda i: (-volume(places[i]), extent(places[i])))
    tiles = traded(mesh, run, x, cuts, [places[i] for i in order], at_once)
    return [tile for _, tile in sorted(zip(order, tiles, strict=True), key=lambda pair: pair[0])]


def traded(
    mesh: Mesh,
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    cuts: Sequence[Cut],
    places: Sequence[Corner],
    at_once: int,
) -> list[Tensor]:
    """The same of tiles from the largest down."""
    owners = dealt([volume(place) for place in places], mesh.ranks)
    mine = [place for place, owner in zip(places, owners, strict=True) if owner == mesh.rank]
    # A rank without a tile makes the smallest too, while others make theirs: to know what a tile becomes.
    tiles = list(ran(run, x, mine or places[-1:], at_once))
    shapes = [(*tiles[0].shape[:2], *made_of(cuts, place)) for place in places]
    sizes = [[prod(s) for s, owner in zip(shapes, owners, strict=True) if owner == rank] for rank in range(mesh.ranks)]
    flat = torch.cat([tiles[0].new_empty(0), *(tile.reshape(-1) for tile in tiles[: len(mine)])])
    parts = mesh.gather(TILES, flat, [sum(n) for n in sizes])
    following = [iter(part.split(n)) for part, n in zip(parts, sizes, strict=True)]
    return [next(following[owner]).view(shape) for owner, shape in zip(owners, shapes, strict=True)]


def dealt(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank of each of some tiles, the largest of which come first: the one that has least so far."""
    owners, loads = list[int](), [0] * ranks
    for size in sizes:
        owners.append(loads.index(min(loads)))
        loads[owners[-1]] += size
    return owners


def made_of(cuts: Sequence[Cut], place: Corner) -> list[int]:
    """The size of what a tile becomes."""
    return [cut.made(n) for cut, n in zip(cuts, extent(place), strict=True)]


def extent(place: Corner) -> list[int]:
    """Time, height and width of a tile."""
    return [side.stop - side.start for side in place]


def volume(place: Corner) -> int:
    return prod(extent(place))
