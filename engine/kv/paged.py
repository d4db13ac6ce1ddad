"""PagedView: what the layers of a denoiser see of the pool, for one block of each of N worlds.

Where one world's pages and its block in flight lie in one ascending run, a layer's keys are a slice of the pool and
nothing is copied (range access); any other set of pages is gathered once a block (index access), shorter histories
padded in front and masked. Both have the same order, so both give the same bits. A top-k policy chooses further
pages in each layer, by the queries of the block's first pass.

Legend: N worlds, F latent frames in flight, S tokens each, T pages of history, C choices, h heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kv.policy import Reach
from engine.kv.pool import Pool, is_range
from engine.kv.view import Group


class PagedView:
    """History and the block in flight of N worlds.

    Args:
        reaches: what each world's block may see.
        in_flight: each world's pages to be written, F each.
        top_k: pages that every layer chooses out of the reaches' choices.
        span: pad every history to so many pages (worlds then compute the same whoever is beside them); by default
            to the longest.
    """

    def __init__(
        self, pool: Pool, reaches: list[Reach], in_flight: list[list[int]], top_k: int = 0, span: int | None = None
    ):
        self.pool, self.in_flight, self.top_k = pool, in_flight, top_k
        self.tokens, self.frames = pool.stream.tokens, len(in_flight[0])
        always = max(len(r.pages) for r in reaches) if span is None else span - top_k
        self.longest = always + top_k
        run = reaches[0].pages + in_flight[0]
        full = len(reaches) == 1 and len(reaches[0].pages) == self.longest
        self.sliced = slice(run[0], run[-1] + 1) if full and pool.sliceable and is_range(run) else None
        self.buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int, Tensor | None] = {}
        if self.sliced is None:
            device = pool.device
            self.pages = padded([r.pages for r in reaches], always, 0, device)
            self.positions = padded([r.positions for r in reaches], always, -1, device)
            self.mask = self._mask(self.positions) if not top_k else None
            if top_k:
                most = max(top_k, *(len(r.choice_pages) for r in reaches))
                self.choices = padded([r.choice_pages for r in reaches], most, 0, device)
                self.choice_positions = padded([r.choice_positions for r in reaches], most, -1, device)
                rows = [[pool.row(p) for p in r.choice_pages] for r in reaches]
                self.choice_rows = padded(rows, most, 0, device)

    def layer(self, index: int) -> PagedLayer:
        return PagedLayer(self, index)

    def commit(self) -> None:
        """Write the last pass's K/V of the block into its pages (already there where keys are a slice)."""
        pages = [page for row in self.in_flight for page in row]
        start = self.longest * self.tokens
        for layer, (keys, values) in self.buffers.items():
            made = [x[:, start:].unflatten(1, (self.frames, self.tokens)).flatten(0, 1) for x in (keys, values)]
            self.pool.write(layer, pages, *made)
        self.pool.note_means(pages)

    def gather(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with room for the block at the end, [N, (T + F) S, h, d], read from the pool once."""
        if layer not in self.buffers:
            pages, self.masks[layer] = self._chosen(layer, queries) if self.top_k else (self.pages, self.mask)
            self.buffers[layer] = self._joined(*self.pool.gather(layer, pages))
        return self.buffers[layer]

    def _joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The history [N, T, S, h, d] with room for the block behind it, head by head in memory."""
        n, _, s, h, d = keys.shape
        made = [x.new_empty(n, h, (self.longest + self.frames) * s, d).transpose(1, 2) for x in (keys, values)]
        for buffer, x in zip(made, (keys, values), strict=True):
            buffer[:, : self.longest * s] = x.flatten(1, 2)
        return made[0], made[1]

    def _chosen(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """This layer's pages [N, T] in logical order, with the `top_k` best choices among them, and their mask."""
        means = self.pool.means[layer][self.choice_rows]
        scores = (queries.float().mean(1)[:, None] * means).sum((-2, -1))
        scores = scores.masked_fill(self.choice_positions < 0, -torch.inf)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.top_k]
        positions = torch.cat([self.positions, self.choice_positions.gather(1, best)], dim=1)
        pages = torch.cat([self.pages, self.choices.gather(1, best)], dim=1)
        order = positions.sort(dim=1, stable=True).indices
        return pages.gather(1, order), self._mask(positions.gather(1, order))

    def _mask(self, positions: Tensor) -> Tensor | None:
        """bool [N, 1, 1, (T + F) S], False on padding; None where there is none."""
        seen = positions >= 0
        if seen.all():
            return None
        visible = torch.cat([seen, seen.new_ones(len(seen), self.frames)], dim=1)
        return visible.repeat_interleave(self.tokens, dim=1)[:, None, None]


class PagedLayer:
    """One layer of a PagedView."""

    def __init__(self, view: PagedView, index: int):
        self.view, self.index = view, index

    def extend(self, q: Tensor, k: Tensor, v: Tensor) -> list[Group]:
        """Write the block's K/V behind its history; all queries see all of it (see engine.attention)."""
        view = self.view
        if view.sliced:
            first, last = view.sliced.start, view.sliced.stop
            keys, values = (x.flatten(0, 1)[None] for x in view.pool.range(self.index, first, last - first))
            mask = None
        else:
            keys, values = view.gather(self.index, q)
            mask = view.masks[self.index]
        keys[:, -k.shape[1] :] = k
        values[:, -v.shape[1] :] = v
        return [Group(slice(None), keys, values, mask)]


def padded(rows: list[list[int]], width: int, blank: int, device: torch.device) -> Tensor:
    """int64 [N, width]: rows filled up in front."""
    return torch.tensor([[blank] * (width - len(row)) + row for row in rows], dtype=torch.int64, device=device)
