"""The KV pool: one allocation a layer, cut into pages of one latent frame, reference-counted.

A page holds one latent frame in every layer of every stream of the model. It is written while its block is in flight
and is immutable once it is committed, so worlds may share it. Pages from `HOST` on lie in host memory: what has left
the window may wait there and come back by index.
Legend: P pages, S tokens of a latent frame, h heads, d head width, N worlds, T pages of an index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from engine.kv.pages import Pages, PlainPages, QuantisedPages, taken
from engine.kv.share import WHOLE, Share
from engine.spec import KVStream

HOST = 1 << 40
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class PoolFull(ValueError):
    """A world does not fit; nothing was taken."""


class Shelf:
    """Pages of all layers in one place, and how many hold each of them."""

    def __init__(self, make: Callable[..., Pages], streams: Sequence[KVStream], num_pages: int):
        self.layers: list[Pages] = [make(s, num_pages=num_pages) for s in streams for _ in range(s.layers)]
        self.counts = np.zeros(num_pages, np.int32)

    @property
    def num_bytes(self) -> int:
        return sum(x.nbytes for layer in self.layers for x in layer.raw().values())

    def free(self, after: int = -1) -> np.ndarray:
        """Free pages, ascending from `after` + 1 on and then around."""
        pages = np.flatnonzero(self.counts == 0)
        return np.roll(pages, -int(np.searchsorted(pages, after + 1)))

    def grow(self, num_pages: int) -> None:
        for layer in self.layers:
            layer.grow(num_pages)
        self.counts = np.pad(self.counts, (0, num_pages - len(self.counts)))


class Pool:
    """Keys and values of a model's streams, and who holds which page.

    Layers are numbered through all streams, one after the other: `first_layer` has where each begins.

    Args:
        streams: layers, tokens, heads and head width; the self-attention's first.
        capacity: pages that worlds may hold.
        dtype: the model's precision, which reading gives.
        slack: further pages, never admitted to, so that a sliding window mostly stays one ascending run.
        kv_dtype: None stores what the model computes; "int8" and "fp8" store codes (see pages.py).
        per_channel: with codes, one scale for each channel of a page's keys, not one for all.
        host: pages in host memory.
        summarise: keep every page's mean key, for a top-k policy to choose by.
        share: what is kept here of every page.
    """

    def __init__(
        self,
        streams: KVStream | Sequence[KVStream],
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        slack: int = 0,
        kv_dtype: str | None = None,
        per_channel: bool = True,
        host: int = 0,
        summarise: bool = False,
        share: Share = WHOLE,
    ):
        if kv_dtype is not None and kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype {kv_dtype!r}: expected None or one of {list(KV_DTYPES)}")
        self.share, self.whole = share, (streams,) if isinstance(streams, KVStream) else tuple(streams)
        self.streams = tuple(share.stream(s) for s in self.whole)
        stream = self.stream = self.streams[0]
        starts = accumulate((s.layers for s in self.streams), initial=0)
        self.first_layer = {s.name: start for s, start in zip(self.streams, starts, strict=False)}
        self.dtype, self.device, self.kv_dtype = dtype, device, kv_dtype
        self.capacity, self.slack, self.host_capacity = capacity, slack, host
        kind: Callable[..., Pages] = partial(PlainPages, dtype=dtype)
        if kv_dtype is not None:
            kind = partial(QuantisedPages, dtype=dtype, code=KV_DTYPES[kv_dtype], per_channel=per_channel, share=share)
        pinned = device.type == "cuda"
        self.shelf = Shelf(partial(kind, device=device), self.streams, capacity + slack)
        self.host = Shelf(partial(kind, device=torch.device("cpu"), pin=pinned), self.streams, host)
        self.summarise = summarise
        self.means = torch.zeros(stream.layers, self._rows if summarise else 0, stream.heads, stream.width).to(device)
        self.reserved = self.host_reserved = 0

    @property
    def _rows(self) -> int:
        return len(self.shelf.counts) + len(self.host.counts)

    @property
    def sliceable(self) -> bool:
        """Whether a run of pages can be read, and written, in place."""
        return self.shelf.layers[0].sliceable

    @property
    def page_bytes(self) -> int:
        """Bytes of one latent frame over all layers, as stored."""
        return sum(x[:1].nbytes for layer in self.shelf.layers for x in layer.raw().values())

    @property
    def device_bytes(self) -> int:
        """Bytes allocated on the engine's device."""
        return self.shelf.num_bytes + self.means.nbytes

    @property
    def num_free(self) -> int:
        return int((self.shelf.counts == 0).sum())

    @property
    def num_held(self) -> int:
        """Pages, here and on the host, that some world holds."""
        return int((self.shelf.counts > 0).sum() + (self.host.counts > 0).sum())

    def grow(self, capacity: int, host: int = 0) -> None:
        """Make room for more pages; those there keep their numbers and their bytes."""
        more = capacity - self.capacity
        if more > 0:
            self._resize_means(more, 0)
            self.shelf.grow(len(self.shelf.counts) + more)
            self.capacity = capacity
        if host > self.host_capacity:
            self._resize_means(0, host - self.host_capacity)
            self.host.grow(host)
            self.host_capacity = host

    def _resize_means(self, more: int, more_host: int) -> None:
        """Room for means of further pages, at the end of the device's and of the host's."""
        if self.summarise:
            here, there = self.means.split([len(self.shelf.counts), len(self.host.counts)], dim=1)
            blank = self.means.new_zeros(len(self.means), 1, *self.means.shape[2:])
            parts = [here, blank.expand(-1, more, -1, -1), there, blank.expand(-1, more_host, -1, -1)]
            self.means = torch.cat(parts, dim=1)

    def reserve(self, num_pages: int, host: int = 0, what: str = "a world") -> None:
        """Admit what may come to hold `num_pages` at once, and `host` in host memory.

        Raises:
            PoolFull: they are not there; the message gives both sizes in bytes.
        """
        for wanted, capacity, given, where in (
            (num_pages, self.capacity, self.reserved, "of KV cache"),
            (host, self.host_capacity, self.host_reserved, "of KV cache on the host"),
        ):
            if wanted > capacity - given:
                size, left = wanted * self.page_bytes, (capacity - given) * self.page_bytes
                raise PoolFull(
                    f"{what} needs {wanted} pages ({size:,} bytes) {where} and {capacity - given} ({left:,} bytes) "
                    "are free: close a world, shorten the policy's window or memory, store 8-bit pages "
                    "(kv_dtype='int8'), or open the engine with a larger pool (max_worlds)"
                )
        self.reserved += num_pages
        self.host_reserved += host

    def unreserve(self, num_pages: int, host: int = 0) -> None:
        self.reserved -= num_pages
        self.host_reserved -= host

    def allocate(self, count: int, after: int = -1) -> list[int]:
        """Take `count` free pages, from page `after` + 1 on and then around, so that runs stay contiguous."""
        pages = self.shelf.free(after)[:count].tolist()
        if len(pages) < count:
            raise PoolFull(
                f"{count} pages of KV cache wanted, {len(pages)} free of {len(self.shelf.counts)}: give the world a "
                "window, or close others"
            )
        self.retain(pages)
        return pages

    def allocate_host(self, count: int) -> list[int]:
        """Take `count` free pages of the host's; admission sees to it that they are there."""
        pages = (HOST + self.host.free()[:count]).tolist()
        assert len(pages) == count, "host pages beyond what was admitted"
        self.retain(pages)
        return pages

    def retain(self, pages: list[int]) -> None:
        for page in pages:
            shelf, place = self.place(page)
            shelf.counts[place] += 1

    def release(self, pages: list[int]) -> None:
        for page in pages:
            shelf, place = self.place(page)
            assert shelf.counts[place] > 0, f"page {page} released twice"
            shelf.counts[place] -= 1

    def offload(self, page: int) -> int:
        """Move one holder's page to the host and return its number there; a page that others share is copied."""
        if page >= HOST:
            return page
        [away] = self.allocate_host(1)
        place = away - HOST
        for ours, theirs in zip(self.shelf.layers, self.host.layers, strict=True):
            for name, x in theirs.raw().items():
                x[place].copy_(ours.raw()[name][page], non_blocking=x.is_pinned())
        if self.summarise:
            self.means[:, self.row(away)] = self.means[:, page]
        self.release([page])
        return away

    def write(self, layer: int, pages: list[int] | Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [len(pages), S, h, d] of one layer."""
        index = pages if isinstance(pages, Tensor) else upload(pages, self.device)
        self.shelf.layers[layer].write(index, keys, values)

    def note_means(self, pages: list[int]) -> None:
        """Keep the mean keys of pages just written, if a policy chooses by them."""
        if self.summarise:
            index = upload(pages, self.device)
            for layer, store in enumerate(self.shelf.layers[: self.stream.layers]):
                self.means[layer, index] = self.mean(store.gather(index)[0])

    def range(self, layer: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Range access: keys and values [count, S, h, d] of a run of pages; views, unless pages hold codes."""
        return self.shelf.layers[layer].range(first, count)

    def gather(self, layer: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Index access: keys and values [N, T, S, h, d] of any pages (int64 [N, T]), wherever they lie; copies."""
        store = self.shelf.layers[layer]
        if not len(self.host.counts):
            return store.gather(index)
        away = index >= HOST
        keys, values = store.gather(index.masked_fill(away, 0))
        if away.any():
            places = (index[away] - HOST).cpu()
            for made, theirs in zip((keys, values), self.host.layers[layer].gather(places), strict=True):
                made[away] = theirs.to(self.device, non_blocking=True)
        return keys, values

    def stored(self, layer: int, index: Tensor) -> dict[str, Tensor]:
        """What is stored of any pages (int64 [P]), wherever they lie: copies [P, S, h, d] as they are stored."""
        away = index >= HOST
        made = {name: taken(x, index.masked_fill(away, 0)) for name, x in self.shelf.layers[layer].raw().items()}
        if len(self.host.counts) and away.any():
            places = (index[away] - HOST).cpu()
            for name, x in self.host.layers[layer].raw().items():
                made[name][away] = taken(x, places).to(self.device, non_blocking=True)
        return made

    def row(self, page: int) -> int:
        """Where a page's mean key lies."""
        return page if page < HOST else len(self.shelf.counts) + page - HOST

    def mean(self, keys: Tensor) -> Tensor:
        """The part [P, h, d] that the tokens kept here have in their pages' mean keys."""
        return keys.float().mean(1) * self.share.part

    def place(self, page: int) -> tuple[Shelf, int]:
        """Where a page lies."""
        return (self.shelf, page) if page < HOST else (self.host, page - HOST)


def is_range(pages: list[int]) -> bool:
    """Whether the pages are one ascending run."""
    return all(b == a + 1 for a, b in pairwise(pages))


def upload(rows: list, device: torch.device) -> Tensor:
    """Integers on a device, int64; on CUDA from pinned memory, so that nobody waits for the copy."""
    made = torch.tensor(rows, dtype=torch.int64)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made
