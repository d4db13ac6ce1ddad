"""Merging partial attention: outputs over parts of the keys, weighed by the log-sum-exps of their scores, in float32.

Source: the online softmax (Milakov and Gimelshein 2018), as ring attention uses it (Liu et al. 2023).

Legend: N worlds, S queries, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.attention import attend_partial
from engine.kv.view import Group


class Merged:
    """A running merge of partial outputs."""

    def __init__(self) -> None:
        self.out: Tensor | None = None
        self.lse: Tensor | None = None

    def add(self, out: Tensor, lse: Tensor) -> None:
        """Take in another part: its output [N, S, h, d] and log-sum-exps float32 [N, h, S]."""
        if self.out is None or self.lse is None:
            self.out, self.lse = out.float(), lse
            return
        total = torch.logaddexp(self.lse, lse)
        kept, new = (weight(x - total) for x in (self.lse, lse))
        self.out, self.lse = torch.addcmul(self.out * kept, out.float(), new), total

    def result(self, dtype: torch.dtype) -> Tensor:
        assert self.out is not None
        return self.out.to(dtype)


def weight(x: Tensor) -> Tensor:
    """Weights [N, S, h, 1] of logarithms [N, h, S]."""
    return x.exp().transpose(1, 2).unsqueeze(-1)


def partial(q: Tensor, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """All queries' attention to the keys of their groups, and its log-sum-exps (see `attend_partial`)."""
    made = [attend_partial(q[:, g.queries], g) for g in groups]
    if len(made) == 1:
        return made[0]
    return torch.cat([out for out, _ in made], dim=1), torch.cat([lse for _, lse in made], dim=2)


def rescaled(groups: Sequence[Group], old: int, new: int) -> list[Group]:
    """Groups of queries of frames with `old` tokens each, for frames with `new` of them."""

    def at(place: int | None) -> int | None:
        return None if place is None else place // old * new

    return [Group(slice(at(g.queries.start), at(g.queries.stop)), g.keys, g.values, g.mask) for g in groups]
