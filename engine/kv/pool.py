"""The KV pool: one allocation a layer, cut into pages of one latent frame, reference-counted.

A page never moves. Pages are written while their block is in flight and are immutable once it is committed, so a
page may be shared. Legend: P pages, S tokens of a latent frame, h heads, d head width.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from engine.spec import KVStream


class PoolFull(ValueError):
    """A world does not fit; nothing was taken."""


class Pool:
    """Keys and values of one stream, and who holds which page.

    Args:
        stream: layers, tokens, heads and head width.
        capacity: pages that worlds may hold.
        slack: further pages, never admitted to, so that a sliding window mostly stays one ascending run.
    """

    def __init__(self, stream: KVStream, capacity: int, dtype: torch.dtype, device: torch.device, slack: int = 0):
        num_pages = capacity + slack
        shape = (num_pages, stream.tokens, stream.heads, stream.width)
        self.stream, self.dtype, self.device = stream, dtype, device
        self.capacity, self.num_pages = capacity, num_pages
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(stream.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(stream.layers)]
        self.counts = [0] * num_pages
        self.reserved = 0

    @property
    def page_bytes(self) -> int:
        return self.stream.page_bytes(self.dtype.itemsize)

    @property
    def num_free(self) -> int:
        return self.counts.count(0)

    def reserve(self, num_pages: int) -> None:
        """Admit a world that may come to hold `num_pages` at once.

        Raises:
            PoolFull: they are not there; the message gives both sizes in bytes.
        """
        left = self.capacity - self.reserved
        if num_pages > left:
            raise PoolFull(
                f"a world needs {num_pages} pages ({num_pages * self.page_bytes:,} bytes) of KV cache and "
                f"{left} ({left * self.page_bytes:,} bytes) are free: close a world, shorten the window, "
                "or open the engine with a larger max_worlds"
            )
        self.reserved += num_pages

    def unreserve(self, num_pages: int) -> None:
        self.reserved -= num_pages

    def allocate(self, count: int, after: int = -1) -> list[int]:
        """Take `count` free pages, from page `after` + 1 on and then around, so that runs stay contiguous."""
        order = (i % self.num_pages for i in range(after + 1, after + 1 + self.num_pages))
        pages = [page for page in order if self.counts[page] == 0][:count]
        if len(pages) < count:
            raise PoolFull(
                f"{count} pages of KV cache wanted, {len(pages)} free of {self.num_pages}: give the world a window, "
                "or close others"
            )
        self.retain(pages)
        return pages

    def retain(self, pages: list[int]) -> None:
        for page in pages:
            self.counts[page] += 1

    def release(self, pages: list[int]) -> None:
        for page in pages:
            assert self.counts[page] > 0, f"page {page} released twice"
            self.counts[page] -= 1


def is_range(pages: list[int]) -> bool:
    """Whether the pages are one ascending run."""
    return all(b == a + 1 for a, b in pairwise(pages))
