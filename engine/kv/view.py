"""Views: what the layers of a denoiser see of the history.

`CausalView` has no cache: all frames of a sequence are in flight and each sees itself and those its policy allows.
It is what training runs, and the reference that the cache (paged.py) is tested against.

Legend: N worlds, F latent frames in flight, S tokens each, T visible keys, h heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv.pool import is_range
from engine.spec import KVPolicy


@dataclass(frozen=True)
class Group:
    """Some of the block's queries and all the keys they may see.

    Attributes:
        queries: which of the S queries.
        keys, values: [N, T, h, d], in logical order.
        mask: bool [N or 1, 1, queries or 1, T], True where a query sees a key; None where all see all.
    """

    queries: slice
    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


class CausalView:
    """A whole sequence in flight: frame f sees its block and its policy's frames before it, of the same sequence.

    Given `context`, the view of another copy of the same frames (which recorded its K/V), frame f sees its block as
    it is in flight and the frames before it as they are in that copy: a noisy frame after a clean history.

    Args:
        policy: window and sinks.
        tokens: S.
        block: frames that see one another.
        chunk: frames that share one group of keys; what some of them may not see is masked.
    """

    def __init__(
        self, policy: KVPolicy, tokens: int, context: CausalView | None = None, block: int = 1, chunk: int = 2
    ):
        if policy.top_k:
            raise ValueError("a sequence without a cache has no top-k pages: give it a policy with top_k 0")
        self.policy, self.tokens, self.context, self.block = policy, tokens, context, block
        self.chunk = block * max(1, chunk // block)
        self.recorded: dict[int, tuple[Tensor, Tensor]] = {}
        self.plans: dict[int, list[Plan]] = {}

    def layer(self, index: int) -> CausalLayer:
        return CausalLayer(self, index)

    def plan(self, frames: int, device: torch.device) -> list[Plan]:
        """How `frames` frames are grouped; made once."""
        if frames not in self.plans:
            starts = range(0, frames, self.chunk)
            self.plans[frames] = [self._plan(f, min(f + self.chunk, frames), device) for f in starts]
        return self.plans[frames]

    def _plan(self, first: int, last: int, device: torch.device) -> Plan:
        history = sorted({p for f in range(first, last) for p in self.policy.visible(f // self.block * self.block)})
        if self.context is None:  # one copy: its own frames are history and block at once
            history = [p for p in history if p < first]
        table = torch.zeros(last - first, len(history) + last - first, dtype=torch.bool)
        for f in range(first, last):
            start = f // self.block * self.block
            seen, block = set(self.policy.visible(start)), range(start, start + self.block)
            table[f - first, : len(history)] = torch.tensor([p in seen for p in history], dtype=torch.bool)
            own = [g in block or (self.context is None and g in seen) for g in range(first, last)]
            table[f - first, len(history) :] = torch.tensor(own)
        mask = table.repeat_interleave(self.tokens, 0).repeat_interleave(self.tokens, 1)[None, None].to(device)
        return Plan(slice(first * self.tokens, last * self.tokens), history, None if mask.all() else mask)


@dataclass(frozen=True)
class Plan:
    """One chunk of a sequence: its rows, the frames of history it may see, and the mask over both."""

    rows: slice
    history: list[int]
    mask: Tensor | None


class CausalLayer:
    """One layer of a CausalView."""

    def __init__(self, view: CausalView, index: int):
        self.view, self.index = view, index

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> list[Group]:
        """See engine.attention."""
        view = self.view
        if view.context is None:
            view.recorded[self.index] = (k, v)
        past = view.context.recorded[self.index] if view.context else (k, v)
        plans = view.plan(k.shape[1] // view.tokens, k.device)
        return [Group(p.rows, self._join(past[0], k, p), self._join(past[1], v, p), p.mask) for p in plans]

    def _join(self, past: Tensor, own: Tensor, plan: Plan) -> Tensor:
        """The chunk's visible frames of `past`, then the chunk itself: [N, T, h, d]."""
        if not plan.history:
            return own[:, plan.rows]
        s, h = self.view.tokens, plan.history
        cut = slice(h[0] * s, (h[-1] + 1) * s)
        seen = past[:, cut] if is_range(h) else past.unflatten(1, (-1, s))[:, h].flatten(1, 2)
        return torch.cat([seen, own[:, plan.rows]], dim=1)
