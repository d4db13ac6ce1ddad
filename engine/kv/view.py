"""Views: what the layers of a denoiser see of the history.

`CausalView` has no cache: all frames of a sequence are in flight and each sees itself and those its policy allows.
It is what training runs, and the reference that the cache (paged.py) is tested against.

Legend: N worlds, F latent frames in flight, S tokens each, T visible keys, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.kv.pool import is_range
from engine.spec import KVPolicy

ALL = slice(None)


class Turn(Protocol):
    """Turns keys [N, F S, h, d] by their rotary positions."""

    def __call__(self, keys: Tensor, positions: Tensor | None = None, tokens: slice = ALL) -> Tensor:
        """Turned keys; of the block in flight by default, else of latent frames at integer positions [N, F].

        Args:
            tokens: which of a latent frame's the keys are of, where positions are given.
        """
        ...


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


@dataclass(frozen=True)
class PagedGroup:
    """Some of the block's queries, and what attends for them: a kernel that follows the page table, or other ranks.

    Attributes:
        queries: which of the S queries.
        run: queries [N, S, h, d] -> attention's output.
    """

    queries: slice
    run: Callable[[Tensor], Tensor]


class CausalView:
    """A whole sequence in flight: frame f sees its block and its policy's frames before it, of the same sequence.

    Given `context`, the view of another copy of the same frames (which recorded its K/V), frame f sees its block as
    it is in flight and the frames before it as they are in that copy: a noisy frame after a clean history.

    Args:
        policy: window and sinks.
        tokens: S; of each stream by name, where a model has several.
        block: frames that see one another.
        chunk: frames that share one group of keys; what some of them may not see is masked.
    """

    def __init__(
        self,
        policy: KVPolicy,
        tokens: int | dict[str, int],
        context: CausalView | None = None,
        block: int = 1,
        chunk: int = 2,
    ):
        if policy.top_k:
            raise ValueError("a sequence without a cache has no top-k pages: give it a policy with top_k 0")
        self.policy, self.context, self.block = policy, context, block
        self.tokens = tokens if isinstance(tokens, dict) else {"self": tokens}
        self.chunk = block * max(1, chunk // block)
        self.recorded: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.plans: dict[int, list[Plan]] = {}
        self.masks: dict[tuple[int, int, int, int], Tensor | None] = {}

    def layer(self, index: int, stream: str = "self") -> CausalLayer:
        return CausalLayer(self, index, stream)

    def plan(self, frames: int) -> list[Plan]:
        """How `frames` frames are grouped; made once."""
        if frames not in self.plans:
            starts = range(0, frames, self.chunk)
            self.plans[frames] = [self._plan(f, min(f + self.chunk, frames)) for f in starts]
        return self.plans[frames]

    def _plan(self, first: int, last: int) -> Plan:
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
        return Plan(first, last, history, table)

    def mask(self, plan: Plan, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """A plan's table over tokens, of which a frame has so many; made once."""
        name = (plan.first, plan.last, queries, keys)
        if name not in self.masks:
            mask = plan.table.repeat_interleave(queries, 0).repeat_interleave(keys, 1)[None, None]
            self.masks[name] = None if plan.table.all() else mask.to(device)
        return self.masks[name]


@dataclass(frozen=True)
class Plan:
    """One chunk of a sequence: frames first .. last - 1, the history they may see, and who sees what of both."""

    first: int
    last: int
    history: list[int]
    table: Tensor


class CausalLayer:
    """One layer of one stream of a CausalView."""

    def __init__(self, view: CausalView, index: int, stream: str):
        self.view, self.name, self.tokens = view, (stream, index), view.tokens[stream]

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[Group]:
        """See engine.attention."""
        view, s = self.view, self.tokens
        k = turn(k) if turn else k
        if view.context is None:
            view.recorded[self.name] = (k, v)
        past = view.context.recorded[self.name] if view.context else (k, v)
        frames = k.shape[1] // s
        per_frame = q.shape[1] // frames
        groups = []
        for plan in view.plan(frames):
            keys, values = (self._join(old, new, plan) for old, new in zip(past, (k, v), strict=True))
            queries = slice(plan.first * per_frame, plan.last * per_frame)
            groups.append(Group(queries, keys, values, view.mask(plan, per_frame, s, k.device)))
        return groups

    def _join(self, past: Tensor, own: Tensor, plan: Plan) -> Tensor:
        """The chunk's visible frames of `past`, then the chunk itself: [N, T, h, d]."""
        s, h = self.tokens, plan.history
        rows = own[:, plan.first * s : plan.last * s]
        if not h:
            return rows
        cut = slice(h[0] * s, (h[-1] + 1) * s)
        seen = past[:, cut] if is_range(h) else past.unflatten(1, (-1, s))[:, h].flatten(1, 2)
        return torch.cat([seen, rows], dim=1)
