"""The exchanges: functions of a layer's queries, keys, values and view, as `attend` is, over ranks that share tokens.

Each rank calls with the tokens that are its own and gets their output. Ulysses trades tokens for heads and wraps any of
the others; a ring passes keys and values, or queries, on to the next rank while it attends to what it has; an
all-gather gives the block's keys and values to all. Partial outputs are merged in float32 (merge.py); what is sent is
priced in costs.py, byte by byte. Knows meshes and views; does not know models.

Sources: DeepSpeed-Ulysses (Jacobs et al. 2023), Ring Attention (Liu et al. 2023), Context Parallelism for Scalable
Million-Token Inference (Yang et al. 2024, arXiv 2411.01783), USP (Fang and Zhao 2024).

Legend: N worlds, F latent frames in flight, S tokens of a frame, s a rank's, h heads, g queries of a kv head, d head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bound
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from engine.attention import attend
from engine.kv.parts import Part
from engine.kv.view import Group, PagedGroup, Turn
from engine.parallel.heads import Deal
from engine.parallel.layout import Layout
from engine.parallel.merge import Merged, partial, rescaled
from engine.parallel.mesh import Mesh


class Layer(Protocol):
    """One layer's window on the history, of the tokens and heads that a rank keeps."""

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[Group]: ...

    def part(self, k: Tensor, v: Tensor, groups: list[Group]) -> Part: ...

    def over(self, part: Part, queries: int, turn: Turn | None) -> list[Group]: ...


Attend = Callable[[Tensor, Tensor, Tensor, Layer, Turn | None], Tensor]


@dataclass(frozen=True)
class Exchanged:
    """A layer whose queries are attended for by an exchange.

    Attributes:
        relative: keys are kept unturned, and turned when they are read.
    """

    layer: Layer
    exchange: Attend
    relative: bool

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[PagedGroup]:
        """See engine.attention."""
        if turn and not self.relative:
            k, turn = turn(k), None
        return [PagedGroup(slice(None), lambda queries: self.exchange(queries, k, v, self.layer, turn))]


def exchange_of(mesh: Mesh, layout: Layout, deal: Deal) -> Attend:
    """The exchange that a mesh was made for."""
    kind, groups = mesh.exchange, layout.group
    outer: dict[str, Callable[[], Attend]] = {
        "": lambda: attend,
        "ring": lambda: Ring(mesh, groups),
        "pass-q": lambda: PassQ(mesh, groups),
        "all-gather": lambda: AllGather(mesh, groups),
    }
    made = outer[kind.outer]()
    if kind.ulysses == 1:
        return made
    first = mesh.outer.rank * kind.ulysses
    return Ulysses(mesh, layout.own[first : first + kind.ulysses], deal, made)


@dataclass(frozen=True)
class Ulysses:
    """Tokens for heads and back: `inner` sees all tokens of the inner ranks, and some heads.

    Attributes:
        tokens: of a latent frame, that each inner rank has.
    """

    mesh: Mesh
    tokens: tuple[int, ...]
    deal: Deal
    inner: Attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, turn: Turn | None = None) -> Tensor:
        n, count, d = len(k), k.shape[1], k.shape[-1]
        own = self.tokens[self.mesh.inner.rank]
        frames, deal = count // own, self.deal
        parts = deal.dealt(q.unflatten(1, (count, -1)), k, v)
        heads = parts[0].shape[2]
        sizes = [n * frames * t * heads * d for t in self.tokens]
        got = self.mesh.all_to_all("queries, keys, values by head", parts, sizes, "inner")
        rows = [x.view(n, frames, t, heads, d) for x, t in zip(got, self.tokens, strict=True)]
        out = self.inner(*deal.opened(torch.cat(rows, dim=2).flatten(1, 2)), layer, turn)
        rows = list(out.reshape(n, frames, sum(self.tokens), -1, d).split(self.tokens, dim=2))
        sizes = [n * count * deal.queries * deal.keys * d] * deal.ranks
        got = self.mesh.all_to_all("output by token", rows, sizes, "inner")
        shape = (n, count, deal.queries, deal.keys, d)
        return deal.gathered([x.view(shape) for x in got]).flatten(1, 2)


@dataclass(frozen=True)
class Outer:
    """What ranks of an outer exchange share.

    Attributes:
        tokens: of a latent frame, that each group of inner ranks has.
    """

    mesh: Mesh
    tokens: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.mesh.outer.rank

    def turned(self, turn: Turn | None, rank: int) -> Turn | None:
        """The turn of keys of a rank's tokens."""
        first, last = list(pairwise(accumulate(self.tokens, initial=0)))[rank]
        return bound(turn, tokens=slice(first, last)) if turn else None


class Ring(Outer):
    """Keys and values, pages of history among them, go round; each rank merges what its queries see of every part."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, turn: Turn | None = None) -> Tensor:
        groups = layer.extend(q, k, v, self.turned(turn, self.rank))
        part = layer.part(k, v, groups)
        raw, merged, ranks = part.packed(), Merged(), len(self.tokens)
        for hop in range(1, ranks + 1):
            coming = (self.rank - hop) % ranks
            posted = None
            if hop < ranks:
                posted = self.mesh.pass_on("keys and values", raw, part.num_bytes(self.tokens[coming]))
            merged.add(*partial(q, groups))
            if posted:
                raw = posted.received()
                there = part.unpacked(raw, self.tokens[coming])
                groups = layer.over(there, q.shape[1], self.turned(turn, coming))
        return merged.result(q.dtype)


class PassQ(Outer):
    """Queries go round; their partial outputs over every rank's keys come home at the end."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, turn: Turn | None = None) -> Tensor:
        groups = layer.extend(q, k, v, self.turned(turn, self.rank))
        made, there, ranks, own = {}, q, len(self.tokens), self.tokens[self.rank]
        for hop in range(1, ranks + 1):
            here, coming = ((self.rank - i) % ranks for i in (hop - 1, hop))
            count = q.shape[1] // own * self.tokens[coming]
            posted = None
            if hop < ranks:
                posted = self.mesh.pass_on("queries", there, q.nbytes // q.shape[1] * count)
            made[here] = partial(there, rescaled(groups, own, self.tokens[here]))
            if posted:
                there = posted.received().view(q.dtype).view(len(q), count, *q.shape[2:])
        return self._home(q, [made[rank] for rank in range(ranks)])

    def _home(self, q: Tensor, made: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Every rank's partial outputs to it; this one's merged, in the ranks' order."""
        parts = [bytes_of(lse, out.to(q.dtype)) for out, lse in made]
        logs = q.numel() // q.shape[-1] * 4
        name = "partial outputs and log-sum-exps"
        merged = Merged()
        for x in self.mesh.all_to_all(name, parts, [logs + q.nbytes] * len(parts), "outer"):
            lse = x[:logs].view(torch.float32).view(len(q), q.shape[2], q.shape[1])
            merged.add(x[logs:].view(q.dtype).view(q.shape), lse)
        return merged.result(q.dtype)


class AllGather(Outer):
    """The block's keys and values go to all, each of which keeps whole pages."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: Layer, turn: Turn | None = None) -> Tensor:
        n, count, h, d = k.shape
        frames = count // self.tokens[self.rank]
        sizes = [2 * n * frames * t * h * d for t in self.tokens]
        got = self.mesh.gather("new keys and values", torch.stack([k, v]), sizes, "outer")
        rows = [x.view(2, n, frames, t, h, d) for x, t in zip(got, self.tokens, strict=True)]
        keys, values = torch.cat(rows, dim=3).flatten(2, 3)
        return attend(q, keys, values, layer, turn)


def bytes_of(*tensors: Tensor) -> Tensor:
    """Tensors' bytes behind one another."""
    return torch.cat([x.contiguous().reshape(-1).view(torch.uint8) for x in tensors])
