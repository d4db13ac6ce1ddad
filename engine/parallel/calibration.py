"""Measure the links of a mesh of ranks, and keep the figures in a JSON file. The planner knows no torch.distributed.

Rank 0's file decides whether to measure, and all ranks go on with the same figures: ranks that planned by different
ones would wait for each other for ever.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from engine.parallel.links import Fabric, Link, Links

SMALL, LARGE = 1 << 12, 1 << 23  # bytes that a calibration sends
BETWEEN = 1e-3  # seconds of products before every call, about

Run = Callable[[], Any]
Call = Callable[[Tensor], Any]  # with these bytes


def links_of(mesh: DeviceMesh, path: str | Path | None = None, repeats: int = 5) -> Links:
    """The links of a mesh, out of a file or measured; all its ranks call this together.

    Args:
        path: of a JSON file that keeps figures by device, backend and shape of the mesh; None measures.

    Raises:
        ValueError: rank 0's file holds no links.
    """
    path = Path(path).expanduser() if path else None
    key, first = key_of(mesh), dist.get_rank() == 0
    known = read(path) if path and first else {}
    found = torch.tensor(float(key in known), device=mesh.device_type)
    dist.broadcast(found, 0)
    if found:
        return shared(Links.from_dict(known[key]) if first else None, mesh)
    links = calibrate(mesh, repeats)
    if path and first:
        write(path, {**known, key: links.to_dict()})
    return links


def key_of(mesh: DeviceMesh) -> str:
    """What figures hold for."""
    device = torch.cuda.get_device_name() if mesh.device_type == "cuda" else mesh.device_type
    return f"{device}, {dist.get_backend()}, {' x '.join(str(n) for n in mesh.shape)}"


def shared(links: Links | None, mesh: DeviceMesh) -> Links:
    """Rank 0's links on all ranks, by their figures."""
    rows = 2 if mesh.ndim == 2 else 1
    figures = torch.zeros(rows, 3, 2, dtype=torch.float64, device=mesh.device_type)
    if links is not None:
        fabrics = [links.inside, links.across][:rows]
        figures.copy_(torch.tensor([[(x.latency, x.bandwidth) for x in parts(f)] for f in fabrics if f]))
    dist.broadcast(figures, 0)
    made = [Fabric(*(Link(*pair) for pair in row)) for row in figures.tolist()]
    return named(mesh, made[0], made[1] if rows == 2 else None)


def parts(fabric: Fabric) -> tuple[Link, Link, Link]:
    return fabric.all_to_all, fabric.all_gather, fabric.hop


def named(mesh: DeviceMesh, inside: Fabric, across: Fabric | None) -> Links:
    """A mesh's links, of its last dimension and of the one before."""
    name = f"measured on {mesh.size()} {mesh.device_type} ranks"
    return Links(name, mesh.size(), inside, across, mesh.size(mesh.ndim - 1), measured=True)


def calibrate(mesh: DeviceMesh, repeats: int = 5) -> Links:
    """Measure the links of a mesh; all its ranks call this together, and all get the same figures.

    Args:
        mesh: of one dimension, the ranks of a node; or of two, (nodes, ranks of a node).
        repeats: of each call, of which the median counts; the slowest rank's.
    """
    inside = fabric(mesh.get_group(mesh.ndim - 1), mesh.device_type, repeats)
    across = fabric(mesh.get_group(0), mesh.device_type, repeats) if mesh.ndim == 2 else None
    return agreed(named(mesh, inside, across), mesh)


def agreed(links: Links, mesh: DeviceMesh) -> Links:
    """Rank 0's figures for all: groups of other nodes may have measured others."""
    return shared(links if dist.get_rank() == 0 else None, mesh)


def fabric(group: ProcessGroup, device: str, repeats: int = 5) -> Fabric:
    """Measure one group's links: each kind of call with few bytes and with many."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    following, previous = (dist.get_global_rank(group, (rank + i) % size) for i in (1, -1))

    def exchange(x: Tensor) -> None:
        dist.all_to_all_single(torch.empty_like(x), x, group=group)

    def gather(x: Tensor) -> None:
        dist.all_gather(list(x.new_empty(size, len(x) // size)), x[: len(x) // size], group=group)

    def hop(x: Tensor) -> None:
        there = dist.P2POp(dist.isend, x, following, group)
        back = dist.P2POp(dist.irecv, torch.empty_like(x), previous, group)
        for work in dist.batch_isend_irecv([there, back]):
            work.wait()

    return measured((exchange, gather, hop), group, device, device, repeats)


def measured(calls: Sequence[Call], group: ProcessGroup, device: str, wire: str, repeats: int) -> Fabric:
    """A fabric, by what its all-to-all, its all-gather and its hop of so many bytes take.

    Args:
        device, wire: where products run, and where the backend can send from.
    """
    size, product = dist.get_world_size(group), product_of(group, device, wire)
    buffers = [torch.zeros(n // size * size, dtype=torch.uint8, device=device) for n in (SMALL, LARGE)]

    def link(call: Call, share: float) -> Link:
        few, many = (added(product, partial(call, x), group, device, wire, repeats) for x in buffers)
        return fitted(few, many, share * SMALL, share * LARGE)

    others = (size - 1) / size
    return Fabric(*(link(call, share) for call, share in zip(calls, (others, others, 1.0), strict=True)))


def added(product: Run, call: Run, group: ProcessGroup, device: str, wire: str, repeats: int) -> float:
    """Seconds that a call adds to products before it, of the slowest rank; the median.

    A call waits for the slowest rank, so what it takes depends on what ranks do before it. Calls one after another find
    ranks in step, and on busy CPUs take half of what they take in a block.
    """
    times = []
    for _ in range(2 * repeats + 1):
        alone = seconds(product, device)
        both = seconds(lambda: (product(), call()), device)
        times.append(slowest(both - alone, group, wire))
    return max(1e-7, statistics.median(times[1:]))


def product_of(group: ProcessGroup, device: str, wire: str) -> Run:
    """Products that take about `BETWEEN` seconds, as many on every rank."""
    a = torch.zeros(256, 256, device=device)
    one = statistics.median(seconds(lambda: a @ a, device) for _ in range(9))
    count = round(slowest(max(1, BETWEEN / one), group, wire))

    def run() -> None:
        for _ in range(count):
            a @ a

    return run


def seconds(run: Run, device: str) -> float:
    """How long one run takes, to its end on the device."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fitted(few: float, many: float, small: float, large: float) -> Link:
    """The line through two measured times of so many bytes, its start not below 0."""
    slope = max(many - few, 1e-3 * many) / (large - small)
    return Link(max(0.0, few - slope * small), 1 / slope)


def slowest(seconds: float, group: ProcessGroup, device: str) -> float:
    """The largest of all ranks' figures, on all of them."""
    figure = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(figure, dist.ReduceOp.MAX, group=group)
    return float(figure)


def read(path: Path) -> dict[str, Any]:
    """A cache file's links; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no links ({error}): delete it to measure them again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no links: delete it to measure them again")
    return data


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a cache file, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
