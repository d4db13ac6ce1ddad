"""PagedView: what the layers of a denoiser see of the pool, for one block of each of N worlds.

Where one world's pages and its block in flight lie in one ascending run, a layer's keys are a slice of the pool and
nothing is copied (range access); any other set of pages is gathered (index access), shorter histories padded in front
and masked. Both have the same order, so both give the same bits. What was gathered is kept from pass to pass, unless
that would take more than `KEEP` bytes. With a paged kernel nothing is gathered: it reads the pages in place. A top-k
policy chooses further pages in each layer of the self-attention, by the queries of the block's first pass.

Legend: N worlds, F latent frames in flight, S tokens each, T pages of history, C choices, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from engine.kv.ahead import Ahead
from engine.kv.parts import Part, Seen
from engine.kv.policy import Reach
from engine.kv.pool import HOST, Pool, is_range, upload
from engine.kv.view import Group, PagedGroup, Turn

# Bytes of gathered pages, over all layers, that are kept from one pass of a block to the next.
KEEP = 1 << 30


class PagedView:
    """History and the block in flight of N worlds.

    Args:
        reaches: what each world's block may see.
        in_flight: each world's pages to be written, one for each kept frame of the block.
        firsts: position of each world's first frame in flight; None where the model turns its keys itself.
        top_k: pages that every layer of the self-attention chooses out of the reaches' choices.
        span: pad every history to so many pages (worlds then compute the same whoever is beside them); by default
            to the longest.
        frames: F; by default as many as there are pages to write.
        kept: which of the block's frames are written; by default the last.
        skip: the block's first frames, which no query sees.
        kernel: reads the self-attention's pages in place (see engine.paged_attention), so that none are gathered.
        keep: bytes of gathered pages to keep between passes.
    """

    def __init__(
        self,
        pool: Pool,
        reaches: list[Reach],
        in_flight: list[list[int]],
        firsts: list[int] | None = None,
        top_k: int = 0,
        span: int | None = None,
        frames: int | None = None,
        kept: list[int] | None = None,
        skip: int = 0,
        kernel: Callable[..., Tensor] | None = None,
        keep: int = KEEP,
    ):
        self.kernel = None if pool.stream.relative or pool.host_capacity else kernel
        self.pool, self.in_flight, self.top_k, self.skip = pool, in_flight, top_k, skip
        self.frames = len(in_flight[0]) if frames is None else frames
        self.kept = list(range(self.frames - len(in_flight[0]), self.frames)) if kept is None else kept
        always = max(len(r.pages) for r in reaches) if span is None else span - top_k
        self.longest = always + top_k
        self.counts = [len(r.pages) + min(top_k, len(r.choice_pages)) for r in reaches]
        self.firsts, self.reaches = firsts or [0] * len(reaches), reaches
        whole = len(self.kept) == self.frames and not skip
        run = reaches[0].pages + in_flight[0]
        full = len(reaches) == 1 and len(reaches[0].pages) == self.longest and whole and self.kernel is None
        self.sliced = slice(run[0], run[-1] + 1) if full and pool.sliceable and is_range(run) else None
        small = len(reaches) * (self.longest + self.frames) * pool.page_bytes <= keep
        self.stays = small or not whole or top_k > 0 or not pool.sliceable or pool.host_capacity > 0
        self.joined: Tensor | None = None
        self.ahead: Ahead | None = None
        self.buffers: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.masks: dict[tuple[str, int], Tensor | None] = {}
        self.streams = {s.name: s for s in pool.streams}
        self.plain_masks: dict[str, Tensor | None] = {}  # of streams whose layers all read the same pages
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.chosen: dict[int, Tensor] = {}
        if self.sliced is None:
            self._index(reaches, always)

    def _index(self, reaches: list[Reach], always: int) -> None:
        """Put the page numbers on the device."""
        device, flight = self.pool.device, [] if self.stays else self.in_flight
        rows = padded([r.pages for r in reaches], always, 0)
        self.pages = upload(rows, device)
        if flight:
            self.flight = upload([page for row in flight for page in row], device)
            self.joined = upload([[*a, *b] for a, b in zip(rows, flight, strict=True)], device)
        self.padding = any(len(r.pages) < always for r in reaches)
        self.positions = upload(padded([r.positions for r in reaches], always, -1), device)
        self.away = [(n, t, page) for n, row in enumerate(rows) for t, page in enumerate(row) if page >= HOST]
        if self.away and not self.top_k:
            self.ahead = Ahead(self.pool, [page for _, _, page in self.away])
            self.where = upload([[n, t] for n, t, _ in self.away], device).unbind(1)
            self.pages = self.pages.masked_fill(self.pages >= HOST, 0)
        if self.kernel:
            self.held = upload(self.counts, device)
        if self.top_k:
            most = max(self.top_k, *(len(r.choice_pages) for r in reaches))
            self.choices = upload(padded([r.choice_pages for r in reaches], most, 0), device)
            self.choice_positions = upload(padded([r.choice_positions for r in reaches], most, -1), device)
            means = [[self.pool.row(p) for p in r.choice_pages] for r in reaches]
            self.choice_rows = upload(padded(means, most, 0), device)
            self.padding = self.padding or min(self.counts) < self.longest

    def layer(self, index: int, stream: str = "self") -> PagedLayer:
        return self.pool.share.layer(PagedLayer(self, index, stream), stream)

    def during(self, reach: Sequence[int | None]) -> PagedView:
        """The view of a pass: one block is in flight, and all passes see the same."""
        return self

    @cached_property
    def seen(self) -> Seen:
        """Which of the pages are no padding."""
        return Seen(self.counts, self.longest, self.pool.device)

    @cached_property
    def listed(self) -> Tensor:
        """The numbers of all pages that the layers see, world after world, [P]."""
        return upload([page for r in self.reaches for page in r.pages], self.pool.device)

    @cached_property
    def rotary(self) -> Tensor:
        """Positions of the block's frames, [N, F]: in the world, or counted from the start of what it sees."""
        firsts = [c - self.skip for c in self.counts] if self.pool.stream.relative else self.firsts
        return torch.stack([torch.arange(f, f + self.frames, device=self.pool.device) for f in firsts])

    @cached_property
    def seen_positions(self) -> Tensor:
        """Positions [N, T + F] of all that a block sees, counted from its start; 0 on padding.

        One tensor for all layers: a model that keeps the angles of the last positions takes them once.
        """
        device = self.pool.device
        count = self.longest + self.frames - self.skip
        rows = [torch.arange(c - self.longest, c - self.longest + count, device=device) for c in self.counts]
        return torch.stack(rows).clamp(min=0)

    def commit(self) -> None:
        """Write the last pass's K/V of the block into its pages (already there where nothing was kept apart)."""
        pages = [page for row in self.in_flight for page in row]
        rows = [f - self.skip for f in self.kept]
        own = {
            name: [x[:, self.history(name[0]) * self.tokens(name[0]) :] for x in buffers]
            for name, buffers in self.buffers.items()
        }
        own |= {("self", layer): list(pair) for layer, pair in self.own.items()}
        some = None if len(rows) == self.frames else upload(rows, self.pool.device)
        for (stream, layer), pair in own.items():
            frames = [x.unflatten(1, (-1, self.tokens(stream))) for x in pair]
            made = [x if some is None else x.index_select(1, some) for x in frames]
            self.pool.write(self.number(stream, layer), pages, *(x.flatten(0, 1) for x in made))
        self.pool.note_means(pages)

    def number(self, stream: str, layer: int) -> int:
        """A layer's number in the pool."""
        return self.pool.first_layer[stream] + layer

    def history(self, stream: str) -> int:
        """Pages of history, padding among them, that a stream's layers gather: only the self-attention chooses some."""
        return self.longest if stream == "self" else self.longest - self.top_k

    def tokens(self, stream: str) -> int:
        return self.streams[stream].tokens

    def gather(self, stream: str, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with room for the block at the end, [N, (T + F) S, h, d], read from the pool once."""
        name = (stream, layer)
        if name not in self.buffers:
            if self.top_k and stream == "self":
                pages, positions = self._chosen(layer, queries)
                self.chosen[layer], self.masks[name] = pages, self.mask(positions, stream)
            else:
                pages, self.masks[name] = self.pages, self._plain_mask(stream)
            self.buffers[name] = self._joined(*self._gathered(self.number(stream, layer), pages))
        return self.buffers[name]

    def _gathered(self, number: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of pages, those of the host among them, [N, T, S, h, d]."""
        if self.ahead is None:
            return self.pool.gather(number, pages)
        keys, values = self.pool.shelf.layers[number].gather(pages)
        for made, brought in zip((keys, values), self.ahead.take(number), strict=True):
            made[self.where] = brought
        return keys, values

    def paged(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> PagedGroup:
        """A layer of the self-attention without gathering: the kernel follows the page table."""
        assert self.kernel is not None
        self.own[layer] = (k, v)
        if layer not in self.chosen:
            self.chosen[layer] = self._chosen(layer, q)[0] if self.top_k else self.pages
        stored = self.pool.shelf.layers[layer].raw()
        run = partial(self.kernel, own_keys=k, own_values=v, pages=self.chosen[layer], counts=self.held, **stored)
        return PagedGroup(slice(None), run)

    def through_pages(self, stream: str, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the block into its pages and gather them behind the history: nothing is kept from pass to pass."""
        assert self.joined is not None
        number, tokens = self.number(stream, layer), self.tokens(stream)
        made = [x.unflatten(1, (-1, tokens)).flatten(0, 1) for x in (keys, values)]
        self.pool.write(number, self.flight, *made)
        self.masks[stream, layer] = self._plain_mask(stream)
        seen_keys, seen_values = self.pool.gather(number, self.joined)
        return seen_keys.flatten(1, 2), seen_values.flatten(1, 2)

    def _joined(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The history [N, T, S, h, d] with room for the block behind it, head by head in memory."""
        n, t, s, h, d = keys.shape
        size = (t + self.frames - self.skip) * s
        made = [x.new_empty(n, h, size, d).transpose(1, 2) for x in (keys, values)]
        for buffer, x in zip(made, (keys, values), strict=True):
            buffer[:, : t * s] = x.flatten(1, 2)
        return made[0], made[1]

    def _chosen(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's pages [N, T] in logical order, with the `top_k` best choices among them, and their positions."""
        counts = [len(r.choice_pages) for r in self.reaches]
        scores = self.pool.share.scores(queries, self.pool.means[layer][self.choice_rows], counts)
        scores = scores.masked_fill(self.choice_positions < 0, -torch.inf)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.top_k]
        positions = torch.cat([self.positions, self.choice_positions.gather(1, best)], dim=1)
        pages = torch.cat([self.pages, self.choices.gather(1, best)], dim=1)
        order = positions.sort(dim=1, stable=True).indices
        return pages.gather(1, order), positions.gather(1, order)

    def _plain_mask(self, stream: str) -> Tensor | None:
        """The mask of a stream's layers, where they all read the same pages; made once."""
        if stream not in self.plain_masks:
            self.plain_masks[stream] = self.mask(self.positions, stream)
        return self.plain_masks[stream]

    def mask(self, positions: Tensor, stream: str) -> Tensor | None:
        """bool [N, 1, 1, (T + F) S], False on padding; None where there is none."""
        if not self.padding:
            return None
        seen = positions >= 0
        visible = torch.cat([seen, seen.new_ones(len(seen), self.frames - self.skip)], dim=1)
        return visible.repeat_interleave(self.tokens(stream), dim=1)[:, None, None]


class PagedLayer:
    """One layer of one stream of a PagedView."""

    def __init__(self, view: PagedView, index: int, stream: str):
        self.view, self.index, self.stream = view, index, stream
        self.kept = view.streams[stream]

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> Sequence[Group | PagedGroup]:
        """Write the block's K/V behind its history; all queries see all of it (see engine.attention)."""
        view = self.view
        if turn and not self.kept.relative:
            k = turn(k)
        k, v = (x[:, view.skip * self.kept.tokens :] for x in (k, v))
        if view.kernel and self.stream == "self":
            return [view.paged(self.index, q, k, v)]
        keys, values = self._seen(q, k, v)
        if turn and self.kept.relative:
            keys = turn(keys, view.seen_positions)
        return [Group(slice(None), keys, values, view.masks.get((self.stream, self.index)))]

    def part(self, k: Tensor, v: Tensor, groups: list[Group]) -> Part:
        """What is kept here of all that the block's queries see, once `extend` has made these groups of it.

        Keys that are stored as computed go as they are read, the block's behind the history's: nothing has to be
        joined, or turned, where they arrive.
        """
        view, tokens = self.view, self.kept.tokens
        if view.seen.full and view.pool.sliceable:
            return Part({}, groups[0].keys, groups[0].values, tokens)
        keys, values = (x[:, view.skip * tokens :] for x in (k, v))
        pages = view.seen.real(view.chosen[self.index]) if view.top_k else view.listed
        return Part(view.pool.stored(view.number(self.stream, self.index), pages), keys, values, tokens)

    def over(self, part: Part, queries: int, turn: Turn | None) -> list[Group]:
        """The groups of so many queries over another rank's part."""
        if not part.stored:
            return [Group(slice(None), part.keys, part.values)]
        view = self.view
        past = view.pool.shelf.layers[view.number(self.stream, self.index)].decoded(part.stored)
        own = (part.keys, part.values)
        keys, values = (torch.cat([view.seen.spread(x), y], dim=1) for x, y in zip(past, own, strict=True))
        if turn and self.kept.relative:
            keys = turn(keys, view.seen_positions)
        return [Group(slice(None), keys, values, view.seen.mask(part.tokens, view.frames - view.skip))]

    def _seen(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """History and block, [N, (T + F) S, h, d]."""
        view = self.view
        if view.sliced:
            first, last = view.sliced.start, view.sliced.stop
            number = view.number(self.stream, self.index)
            keys, values = (x.flatten(0, 1)[None] for x in view.pool.range(number, first, last - first))
        elif view.joined is not None:
            return view.through_pages(self.stream, self.index, k, v)
        else:
            keys, values = view.gather(self.stream, self.index, q)
        keys[:, -k.shape[1] :] = k
        values[:, -v.shape[1] :] = v
        return keys, values


def padded(rows: list[list[int]], width: int, blank: int) -> list[list[int]]:
    """Rows filled up in front."""
    return [[blank] * (width - len(row)) + row for row in rows]
