"""Ahead: pages that wait on the host, copied to the device while the layer before computes.

A view knows before its first layer which host pages every layer will read. When a layer takes its own, the copy of the
next layer's is started: on CUDA on a stream of its own, out of pinned memory, so that neither the host nor the kernels
wait for it. On a CPU it is a plain copy. Knows pages and pools; nothing of policies.

Legend: K host pages, S tokens, h heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kv.pages import taken
from engine.kv.pool import HOST, Pool


class Ahead:
    """The host pages of one block, layer by layer.

    Args:
        places: their numbers, from `HOST` on.
    """

    def __init__(self, pool: Pool, places: list[int]):
        self.pool = pool
        self.index = torch.tensor([p - HOST for p in places], dtype=torch.int64)
        self.side = torch.cuda.Stream(pool.device) if pool.device.type == "cuda" else None
        self.started: dict[int, dict[str, Tensor]] = {}
        self.pinned: list[Tensor] = []  # sources of copies under way

    def take(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [K, S, h, d] of a layer, decoded, on the device; starts the next layer's copy."""
        self._start(layer)
        if self.side is not None:
            torch.cuda.current_stream(self.pool.device).wait_stream(self.side)
        stored = self.started.pop(layer)
        self._start(layer + 1)
        return self.pool.shelf.layers[layer].decoded(stored)

    def _start(self, layer: int) -> None:
        """Begin to copy what is stored of a layer's pages, unless that was done or there is no such layer."""
        if layer in self.started or layer >= len(self.pool.host.layers):
            return
        raw = self.pool.host.layers[layer].raw()
        if self.side is None:
            self.started[layer] = {name: taken(x, self.index).to(self.pool.device) for name, x in raw.items()}
            return
        sources = {name: taken(x, self.index).pin_memory() for name, x in raw.items()}
        self.pinned += sources.values()
        with torch.cuda.stream(self.side):
            made = {name: x.to(self.pool.device, non_blocking=True) for name, x in sources.items()}
        for x in made.values():
            x.record_stream(torch.cuda.current_stream(self.pool.device))
        self.started[layer] = made
