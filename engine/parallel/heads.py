"""Heads for tokens: how the heads of queries and keys are dealt to the ranks of an all-to-all.

Queries [N, T, g, k, d] are those of T tokens, g to each of k kv heads; a rank gets a run of kv heads with all their
queries or, where there are more ranks than kv heads, one kv head with a run of its queries. What does not divide is
filled up with zeros (see `layout.share`). Knows tensors, no processes.

Legend: N worlds, T tokens, g queries of a kv head, k kv heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parallel.layout import share


@dataclass(frozen=True)
class Deal:
    """Which heads each of some ranks has.

    Attributes:
        group: g, of the model.
        kv_heads: k, of the model.
    """

    ranks: int
    group: int
    kv_heads: int

    @property
    def several(self) -> int:
        """Ranks that share a kv head."""
        return max(1, self.ranks // self.kv_heads)

    @property
    def keys(self) -> int:
        """KV heads of a rank."""
        return share(self.group * self.kv_heads, self.kv_heads, self.ranks)[1]

    @property
    def queries(self) -> int:
        """Queries of a kv head that a rank has."""
        return -(-self.group // self.several)

    def runs(self, rank: int) -> tuple[slice, slice]:
        """The rank's queries of a kv head, and its kv heads; shorter, or empty, where zeros fill them up."""
        turn, part = divmod(rank, self.several)
        return run(part, self.queries, self.group), run(turn, self.keys, self.kv_heads)

    def dealt(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """What each rank gets of queries [N, T, g, k, d], keys and values [N, T, k, d]: [N, T, heads, d], packed."""
        made = []
        for rank in range(self.ranks):
            queries, heads = self.runs(rank)
            own = filled(filled(q[:, :, queries, heads], 2, self.queries), 3, self.keys).flatten(2, 3)
            made.append(torch.cat([own, *(filled(x[:, :, heads], 2, self.keys) for x in (k, v))], dim=2))
        return made

    def opened(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, T g', k', d], keys and values [N, T, k', d] of what a rank got."""
        q, k, v = x.split([self.queries * self.keys, self.keys, self.keys], dim=2)
        return q.unflatten(2, (self.queries, self.keys)).flatten(1, 2), k, v

    def gathered(self, parts: Sequence[Tensor]) -> Tensor:
        """All heads [N, T, g, k, d] of what each rank has of them, [N, T, g', k', d]."""
        n, tokens, *_, d = parts[0].shape
        made = parts[0].new_empty(n, tokens, self.group, self.kv_heads, d)
        for rank, part in enumerate(parts):
            queries, heads = self.runs(rank)
            made[:, :, queries, heads] = part[:, :, : length(queries), : length(heads)]
        return made


def run(index: int, size: int, total: int) -> slice:
    """Run number `index` of so many things, or what there is of it."""
    return slice(min(index * size, total), min((index + 1) * size, total))


def length(x: slice) -> int:
    return x.stop - x.start


def filled(x: Tensor, dim: int, size: int) -> Tensor:
    """Zeros behind what there is along one dimension, up to a size."""
    missing = size - x.shape[dim]
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, missing]) if missing else x
