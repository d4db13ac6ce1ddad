"""FlightView: what the layers of a denoiser see where blocks are in flight together, each with a reach of its own.

A block's queries see a run of blocks that ends with itself: finished ones in the pool, then those in flight before it.
Keys and values of what is in flight live for one layer of one pass; only those of the oldest block are kept, where the
pass commits it. Branches of guidance are further rows of the same call that share the history.

Legend: N worlds, B blocks in flight, F latent frames of one, S tokens of a frame, T latent frames of history, h heads,
d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.kv.parts import Part
from engine.kv.pool import Pool, is_range, upload
from engine.kv.view import Group, Turn


class FlightView:
    """History and the blocks in flight of N worlds that have as much of both.

    Args:
        pages: of each world's history that is seen, oldest first; as many for all.
        into: pages of each world that the oldest block is written to; empty where the pass commits nothing.
        firsts: position of each world's first latent frame in flight.
        blocks, frames: B and F.
    """

    def __init__(
        self,
        pool: Pool,
        pages: list[list[int]],
        into: list[list[int]],
        firsts: list[int],
        blocks: int,
        frames: int,
    ):
        self.pool, self.into, self.firsts, self.blocks, self.frames = pool, into, firsts, blocks, frames
        self.pages = pages
        self.num_worlds, self.history = len(pages), len(pages[0])
        one = self.num_worlds == 1 and pool.sliceable and not pool.host_capacity
        self.run = pages[0][0] if one and pages[0] and is_range(pages[0]) else None
        self.index = upload(pages, pool.device) if pages[0] and self.run is None else None
        self.written = upload([page for row in into for page in row], pool.device)

    def during(self, reach: Sequence[int | None]) -> Branches:
        """The view of a pass.

        Args:
            reach: blocks that each block in flight sees, itself among them; None for all.
        """
        return Branches(self, 1, tuple(reach))

    @cached_property
    def listed(self) -> Tensor:
        """The numbers of all pages that are seen, world after world."""
        return upload([page for row in self.pages for page in row], self.pool.device)

    @cached_property
    def rotary(self) -> Tensor:
        """Positions of all latent frames in flight, [N, B F]."""
        count = self.blocks * self.frames
        return torch.stack([torch.arange(first, first + count, device=self.pool.device) for first in self.firsts])

    def past(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the history, [N, T S, h, d]; views where its pages are one run."""
        if self.run is not None:
            keys, values = self.pool.range(layer, self.run, self.history)
            return keys.flatten(0, 1)[None], values.flatten(0, 1)[None]
        if self.index is None:
            return None
        keys, values = self.pool.gather(layer, self.index)
        return keys.flatten(1, 2), values.flatten(1, 2)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the oldest block's keys and values of the last rows into its pages, if it is to become history.

        At once: waiting for the commit would keep the keys and values of all blocks in memory, of every layer.
        """
        if self.into[0]:
            size = self.frames * self.pool.stream.tokens
            pair = (x[-self.num_worlds :, :size] for x in (keys, values))
            self.pool.write(layer, self.written, *(x.unflatten(1, (self.frames, -1)).flatten(0, 1) for x in pair))

    def commit(self) -> None:
        """Nothing is left to be written."""


@dataclass(frozen=True)
class Branches:
    """What one pass sees of a FlightView, in one or more rows a world."""

    view: FlightView
    copies: int
    reach: tuple[int | None, ...]

    def branches(self, copies: int, alone: int = 0) -> Branches:
        """The same for `copies` rows a world, world after world in each, the last of which are kept.

        Args:
            alone: further blocks behind those in flight, which see only themselves.
        """
        return Branches(self.view, copies, (*self.reach, *(1,) * alone))

    def apart(self) -> Alone:
        """A view for rows that see only themselves."""
        return Alone(self.view.pool)

    def layer(self, index: int, stream: str = "self") -> FlightLayer:
        assert stream == "self", f"one stream, not {stream!r}"
        return self.view.pool.share.layer(FlightLayer(self, index))


@dataclass(frozen=True)
class FlightLayer:
    """One layer of a FlightView's branches."""

    branches: Branches
    index: int

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[Group]:
        """A group for each block in flight (see engine.attention)."""
        view = self.branches.view
        k = turn(k) if turn else k
        view.keep(self.index, k, v)
        return self._groups(view.past(self.index), k, v, q.shape[1], view.pool.stream.tokens)

    def part(self, k: Tensor, v: Tensor, groups: list[Group]) -> Part:
        """What is kept here of all that the blocks' queries see; the history once, whatever the number of branches."""
        pool = self.branches.view.pool
        return Part(pool.stored(self.index, self.branches.view.listed), k, v, pool.stream.tokens)

    def over(self, part: Part, queries: int, turn: Turn | None) -> list[Group]:
        """The groups of so many queries over another rank's part."""
        view = self.branches.view
        keys, values = view.pool.shelf.layers[self.index].decoded(part.stored)
        rows = (x.unflatten(0, (view.num_worlds, view.history)).flatten(1, 2) for x in (keys, values))
        return self._groups(tuple(rows) if view.history else None, part.keys, part.values, queries, part.tokens)

    def _groups(
        self, past: tuple[Tensor, ...] | None, k: Tensor, v: Tensor, num_queries: int, tokens: int
    ) -> list[Group]:
        """What the queries of each block in flight see, where a latent frame has so many tokens."""
        view = self.branches.view
        if past is not None:
            k, v = (
                torch.cat([x.repeat(self.branches.copies, 1, 1, 1), y], 1) for x, y in zip(past, (k, v), strict=True)
            )
        size, blocks = view.frames * tokens, len(self.branches.reach)
        before, queries = view.history * tokens, num_queries // blocks
        groups = []
        for i, reach in enumerate(self.branches.reach):
            stop = before + (i + 1) * size
            start = 0 if reach is None else max(0, stop - reach * size)
            groups.append(Group(slice(i * queries, (i + 1) * queries), k[:, start:stop], v[:, start:stop]))
        return groups


@dataclass(frozen=True)
class Alone:
    """A view without history: every row sees itself, and nothing is kept."""

    pool: Pool

    def layer(self, index: int, stream: str = "self") -> AloneLayer:
        return self.pool.share.layer(AloneLayer(self.pool))


@dataclass(frozen=True)
class AloneLayer:
    """Any layer of it."""

    pool: Pool

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[Group]:
        return [Group(slice(None), turn(k) if turn else k, v)]

    def part(self, k: Tensor, v: Tensor, groups: list[Group]) -> Part:
        return Part({}, k, v, self.pool.stream.tokens)

    def over(self, part: Part, queries: int, turn: Turn | None) -> list[Group]:
        return [Group(slice(None), part.keys, part.values)]
