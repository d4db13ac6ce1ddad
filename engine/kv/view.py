"""Views: what the layers of a denoiser see of the history, for one block of each of N worlds.

`PagedView` reads the pool. Where one world's pages and its block in flight lie in one ascending run, a layer's keys
are a slice of the pool and nothing is copied (range access); any other set of pages is gathered once a block
(index access), shorter histories padded in front and masked. Both have the same order, so both give the same bits.

`CausalView` has no cache: all frames of a sequence are in flight and each sees itself and those its policy allows.
It is what training runs, and the reference that the cache is tested against.

Legend: N worlds, F latent frames in flight, S tokens each, T visible keys, h heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv.pool import Pool, is_range
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


class PagedView:
    """History and the block in flight of N worlds.

    Args:
        histories: each world's visible pages, in logical order.
        in_flight: each world's pages to be written, F each.
    """

    def __init__(self, pool: Pool, histories: list[list[int]], in_flight: list[list[int]]):
        self.pool, self.in_flight = pool, in_flight
        self.tokens = pool.stream.tokens
        self.longest = max(map(len, histories))
        run = histories[0] + in_flight[0]
        self.sliced = slice(run[0], run[-1] + 1) if len(histories) == 1 and is_range(run) else None
        self.mask = None if self.sliced else self._mask([len(h) for h in histories], len(in_flight[0]))
        self.index = [[0] * (self.longest - len(h)) + h for h in histories]
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int) -> PagedLayer:
        return PagedLayer(self, index)

    def commit(self) -> None:
        """Write the last pass's K/V of the block into its pages (already there where keys are a slice)."""
        pages = torch.tensor(self.in_flight, device=self.pool.device)
        start = self.longest * self.tokens
        for layer, (keys, values) in self.buffers.items():
            for store, buffer in ((self.pool.keys[layer], keys), (self.pool.values[layer], values)):
                store[pages] = buffer[:, start:].unflatten(1, (-1, self.tokens))

    def gather(self, layer: int) -> tuple[Tensor, Tensor]:
        """[N, T, h, d] keys and values with room for the block at the end, filled from the pool once."""
        if layer not in self.buffers:
            self.buffers[layer] = (self._gather(self.pool.keys[layer]), self._gather(self.pool.values[layer]))
        return self.buffers[layer]

    def _gather(self, store: Tensor) -> Tensor:
        n, pages = len(self.index), self.longest + len(self.in_flight[0])
        buffer = store.new_empty(n, pages, *store.shape[1:])
        if self.longest:
            buffer[:, : self.longest] = store[torch.tensor(self.index, device=store.device)]
        return buffer.flatten(1, 2)

    def _mask(self, lengths: list[int], frames: int) -> Tensor | None:
        if min(lengths) == self.longest:
            return None
        visible = torch.arange(self.longest + frames) >= self.longest - torch.tensor(lengths)[:, None]
        return visible.repeat_interleave(self.tokens, dim=1)[:, None, None].to(self.pool.device)


class PagedLayer:
    """One layer of a PagedView."""

    def __init__(self, view: PagedView, index: int):
        self.view, self.index = view, index

    def extend(self, k: Tensor, v: Tensor) -> list[Group]:
        """Write the block's K/V behind its history; all queries see all of it (see engine.attention)."""
        view = self.view
        if view.sliced:
            keys = view.pool.keys[self.index][view.sliced].flatten(0, 1)[None]
            values = view.pool.values[self.index][view.sliced].flatten(0, 1)[None]
        else:
            keys, values = view.gather(self.index)
        keys[:, -k.shape[1] :] = k
        values[:, -v.shape[1] :] = v
        return [Group(slice(None), keys, values, view.mask)]


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

    def extend(self, k: Tensor, v: Tensor) -> list[Group]:
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
