"""The links of the ranks of the default group as exchanges meet them: calls of a Mesh between products.

A call waits for the slowest rank, so what it takes depends on what ranks do before it. Calls one after another, as
engine/parallel/calibration.py times them, find ranks in step; on a busy machine ranks that compute fall out of step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.rank_kernels import Timer
from engine.parallel.agreement import wire
from engine.parallel.calibration import LARGE, SMALL, fitted, slowest
from engine.parallel.layout import Exchange
from engine.parallel.links import Fabric, Link, Links
from engine.parallel.mesh import Mesh

BETWEEN = 1e-3  # seconds of products before every call, about


def links_between_products(timer: Timer) -> Links:
    """Measured links; all ranks call this together, and all get the same."""
    ranks = dist.get_world_size()
    mesh = Mesh.of(Exchange(1, "ring", ranks), timer.device)
    product = product_of(timer)

    def exchange(n: int) -> Any:
        return mesh.all_to_all("", list(buffer(n, timer).chunk(ranks)), [n // ranks] * ranks, "all")

    def gather(n: int) -> Any:
        return mesh.gather("", buffer(n // ranks, timer), [n // ranks] * ranks)

    def hop(n: int) -> Any:
        return mesh.pass_on("", buffer(n, timer), n).wait()

    share = (ranks - 1) / ranks
    fabric = Fabric(*(link(timer, product, *kind) for kind in ((exchange, share), (gather, share), (hop, 1.0))))
    return Links(f"measured between products on {ranks} ranks", ranks, fabric, node=ranks, measured=True)


def link(timer: Timer, product: Callable[[], None], call: Callable[[int], Any], share: float) -> Link:
    """One kind of call, by few bytes and by many."""
    few, many = (added(timer, product, call, size // 64 * 64) for size in (SMALL, LARGE))
    return fitted(few, many, share * SMALL, share * LARGE)


def added(timer: Timer, product: Callable[[], None], call: Callable[[int], Any], size: int) -> float:
    """Seconds that a call adds to a product, of the slowest rank; the median."""
    times = []
    for _ in range(2 * timer.repeats):
        dist.barrier()
        alone = timer.once(product)
        both = timer.once(lambda: (product(), call(size)))
        times.append(slowest(both - alone, dist.group.WORLD, str(wire())))
    return max(1e-7, statistics.median(times))


def product_of(timer: Timer) -> Callable[[], None]:
    """Products that take about `BETWEEN` on every rank."""
    a = timer.random(256, 256)
    count = torch.tensor(max(1, round(BETWEEN / timer.seconds(lambda: a @ a))), device=wire())
    dist.broadcast(count, 0)

    def run() -> None:
        for _ in range(int(count)):
            a @ a

    return run


def buffer(size: int, timer: Timer) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=timer.device)
