"""Pages out of a pool as they are stored, and into another, wherever they lie there: what a snapshot holds of them.

Where ranks share pages, all of them call together: the first gets all of every page, and each takes its part again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kv.pool import Pool, upload
from engine.spec import KVStream


def export(pool: Pool, pages: list[int]) -> dict[str, Tensor]:
    """What is stored of some pages: a tensor [layers, len(pages), ...] a stream, on the CPU; nothing on other ranks."""
    made: dict[str, Tensor | None] = {}
    for stream in pool.whole if pages else ():
        for name in pool.shelf.layers[0].raw():
            rows = [torch.stack([stored(pool, layer, name, p) for p in pages]) for layer in layers_of(pool, stream)]
            made[f"{stream.name}.{name}"] = pool.share.collect(stream, name, torch.stack(rows).cpu())
    if pool.summarise and pool.share.part == 1:
        means = pool.means[:, [pool.row(p) for p in pages]].cpu()
        made["means"] = pool.share.collect(pool.whole[0], "means", means)
    return {name: x for name, x in made.items() if x is not None}


def load(pool: Pool, pages: list[int], exported: dict[str, Tensor]) -> None:
    """Put exported tensors into pages of a pool."""
    for stream in pool.whole if pages else ():
        for name in pool.shelf.layers[0].raw():
            own = pool.share.cut(stream, name, exported[f"{stream.name}.{name}"])
            for i, page in enumerate(pages):
                shelf, place = pool.place(page)
                for row, layer in enumerate(layers_of(pool, stream)):
                    shelf.layers[layer].raw()[name][place] = own[row, i]
    if pool.summarise:
        load_means(pool, pages, exported.get("means"))


def load_means(pool: Pool, pages: list[int], whole: Tensor | None) -> None:
    """Keep the mean keys of loaded pages: as they were or, where tokens are or were shared, formed again."""
    rows = [pool.row(p) for p in pages]
    if whole is not None and pool.share.part == 1:
        pool.means[:, rows] = pool.share.cut(pool.whole[0], "means", whole).to(pool.device)
        return
    for layer in range(pool.stream.layers):
        pool.means[layer, rows] = pool.mean(pool.gather(layer, upload(pages, pool.device))[0])


def stored(pool: Pool, layer: int, name: str, page: int) -> Tensor:
    """One stored tensor of one page."""
    shelf, place = pool.place(page)
    return shelf.layers[layer].raw()[name][place].to(pool.device)


def layers_of(pool: Pool, stream: KVStream) -> range:
    """The numbers of a stream's layers in a pool."""
    first = pool.first_layer[stream.name]
    return range(first, first + stream.layers)
