"""RangesView: what chunks see, by ranges of keys as they were recorded, over a cache as plain as the published one.

For single runs of the denoiser, whose ranges may be any; rollouts are the engine's own.

Legend: N worlds, T tokens, g queries of a key's head, h heads of keys, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.kv.view import Group, Turn

Pair = tuple[Tensor, Tensor]


@dataclass
class RangesView:
    """Key ranges over the first tokens of a past and the chunks in flight behind them.

    Attributes:
        ranges: of each chunk the first token and the one behind the last, counted from the start of the past.
        past: keys and values [N, T, h, d] of each layer, T at least `start`.
        start: token at which the chunks in flight begin.
        seen: past and chunks in flight of each layer that ran.
    """

    ranges: Sequence[tuple[int, int]]
    past: dict[int, Pair] = field(default_factory=dict)
    start: int = 0
    seen: dict[int, Pair] = field(default_factory=dict)

    def layer(self, index: int, stream: str = "self") -> RangesLayer:
        return RangesLayer(self, index)


@dataclass(frozen=True)
class RangesLayer:
    """One layer of a RangesView."""

    view: RangesView
    index: int

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[Group]:
        """See engine.attention."""
        assert turn is None, "the model turns its keys"
        view = self.view
        before = view.past.get(self.index, (k[:, :0], v[:, :0]))
        keys, values = (torch.cat([a[:, : view.start], b], dim=1) for a, b in zip(before, (k, v), strict=True))
        view.seen[self.index] = (keys, values)
        size = q.shape[1] // len(view.ranges)
        slices = [slice(i * size, (i + 1) * size) for i in range(len(view.ranges))]
        return [Group(s, keys[:, a:b], values[:, a:b]) for s, (a, b) in zip(slices, view.ranges, strict=True)]
