"""RankShare: what one of several ranks keeps of every page, and how its layers attend together with the others.

Keys and values of self-attention are kept by head or by token, as the exchange has it; a Matrix-Game's memory of the
mouse by the rank's own tokens, that of the keyboard whole. What depends on whole pages is made of all ranks' parts, in
the ranks' order, so that all ranks find the same: scales, the choice of pages, snapshots.

Legend: N worlds, S tokens, h heads, d head width, P pages, C choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from engine.kv.pool import upload
from engine.kv.share import matched
from engine.model import Codec
from engine.parallel.costs import Where
from engine.parallel.exchange import Exchanged, exchange_of
from engine.parallel.heads import Deal, filled
from engine.parallel.layout import Layout
from engine.parallel.mesh import Mesh
from engine.parallel.tiles import shared_state, whole_state
from engine.spec import KVStream


class RankShare:
    """An `engine.kv.share.Share` of one rank.

    Args:
        stream: the self-attention's, whole.
        group: queries of a kv head.
        codec: this rank's.
    """

    def __init__(self, mesh: Mesh, layout: Layout, stream: KVStream, group: int, codec: Codec):
        self.codec = codec
        self.mesh, self.layout, self.whole = mesh, layout, stream
        self.deal = Deal(layout.exchange.ulysses, group, stream.heads)
        self.attend = exchange_of(mesh, layout, self.deal)
        self.whole_pages = not layout.sequence_sharded
        self.part, self.first = layout.cached[mesh.outer.rank] / stream.tokens, mesh.rank == 0
        self.told = str(mesh.exchange)

    def stream(self, stream: KVStream) -> KVStream:
        if stream.name == "self":
            return replace(stream, tokens=self.layout.cached[self.mesh.outer.rank], heads=self.layout.keys)
        return replace(stream, tokens=self.layout.own[self.mesh.rank]) if self.by_token(stream.name) else stream

    def by_token(self, name: str) -> bool:
        """Whether every rank keeps its own tokens of a stream."""
        return name == "mouse"

    def layer(self, layer: Any, stream: str = "self") -> Any:
        return Exchanged(layer, self.attend, self.whole.relative) if stream == "self" else layer

    def largest(self, stream: str, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        split = not self.whole_pages if stream == "self" else self.by_token(stream)
        if not split:
            return found
        flat = torch.cat([x.reshape(-1) for x in found])
        where: Where = "outer" if stream == "self" else "all"
        ranks = self.mesh.those(where).size
        parts = self.mesh.gather("largest magnitudes", flat, [len(flat)] * ranks, where)
        made = torch.stack(parts).amax(0).split([x.numel() for x in found])
        return tuple(x.view(y.shape) for x, y in zip(made, found, strict=True))

    def scores(self, queries: Tensor, means: Tensor, counts: list[int]) -> Tensor:
        rows, total = means.shape[1], sum(counts)
        if not total:
            return means.new_zeros(means.shape[:2])
        made = matched(self.mean_query(queries), means).flatten()
        where: Where = "inner" if self.whole_pages else "all"
        ranks = self.mesh.those(where).size
        if ranks > 1:
            real = upload([(n + 1) * rows - c + i for n, c in enumerate(counts) for i in range(c)], made.device)
            made[real] = summed(self.mesh.gather("page scores", made[real], [total] * ranks, where))
        return made.view(means.shape[:2])

    def mean_query(self, queries: Tensor) -> Tensor:
        """The mean float32 [N, h, d] of all queries, of those that are here [N, S, h, d]."""
        groups, mine = self.layout.group, self.layout.group[self.mesh.outer.rank]
        if len(groups) == 1:
            return queries.float().mean(1)
        total = queries.float().sum(1)
        made = summed(self.mesh.gather("mean queries", total, [total.numel()] * len(groups), "outer"))
        return made.view(total.shape) / (queries.shape[1] // mine * sum(groups))

    def whole_state(self, state: Any) -> Any:
        return whole_state(self.codec, state)

    def own_state(self, state: Any) -> Any:
        return shared_state(self.codec, state)

    def collect(self, stream: KVStream, name: str, x: Tensor) -> Tensor | None:
        """See `Share`. Rank 0 gets whole pages."""
        layers, pages, *_, width = x.shape
        shapes = [(layers, pages, *self.asked(stream, name, rank), width) for rank in range(self.mesh.ranks)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        got = self.mesh.collect("pages", x if sizes[self.mesh.rank] else x.new_empty(0), sizes)
        parts = [part.view(shape) for part, shape in zip(got, shapes, strict=False) if part.numel()]
        if not parts:
            return None
        if stream.name == "self":
            u = self.layout.exchange.ulysses
            parts = [self.all_heads(parts[i : i + u]) for i in range(0, len(parts), u)]
        whole = torch.cat(parts, dim=2)
        return whole.squeeze(2) if name == "means" else whole

    def asked(self, stream: KVStream, name: str, rank: int) -> tuple[int, int]:
        """Tokens and heads of a rank's that make pages whole; none of what another one has too."""
        outer, mine, tokens = rank // self.layout.exchange.ulysses, stream.name == "self", 1
        split = not self.whole_pages if mine else self.by_token(stream.name)
        if name == "means" or name.endswith("scales"):
            split = False
        elif mine:
            tokens = self.layout.cached[outer]
        else:
            tokens = self.layout.own[rank] if split else stream.tokens
        first = outer == 0 if mine else rank == 0
        return tokens * (first or split), self.layout.keys if mine else stream.heads

    def all_heads(self, parts: Sequence[Tensor]) -> Tensor:
        """All heads, of what each inner rank has of them; the first of those that share one."""
        return torch.cat(list(parts[:: self.deal.several]), dim=-2)[..., : self.whole.heads, :]

    def cut(self, stream: KVStream, name: str, x: Tensor) -> Tensor:
        """See `Share`."""
        if stream.name == "self":
            _, heads = self.deal.runs(self.mesh.inner.rank)
            x = filled(x[..., heads, :], x.ndim - 2, self.layout.keys)
        return x if name == "means" or name.endswith("scales") else x[:, :, self.tokens(stream)]

    def tokens(self, stream: KVStream) -> slice:
        """Those of a stream's pages that are kept here."""
        if stream.name == "self" and not self.whole_pages:
            return run_of(self.layout.group, self.mesh.outer.rank)
        if self.by_token(stream.name):
            return run_of(self.layout.own, self.mesh.rank)
        return slice(None)


def run_of(sizes: Sequence[int], index: int) -> slice:
    """Run number `index` of runs of such sizes."""
    stops = list(accumulate(sizes))
    return slice(stops[index] - sizes[index], stops[index])


def summed(parts: Sequence[Tensor]) -> Tensor:
    """The sum in the order of the parts, so that it has the same bits wherever it is taken."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
