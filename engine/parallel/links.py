"""What it takes to move bytes between ranks: latency and bandwidth of each kind of collective.

A call takes `latency + bytes / bandwidth`, for the bytes that one rank sends (see costs.py). Figures are published
ones, given by hand, or measured on the mesh itself (`calibrate`), which a JSON file keeps.

Published bandwidths are `ATTAINED` of a link's rate in one direction; latencies are assumed. A node's ranks reach
those of other nodes each over a network card of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.parallel.costs import Kind

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

ATTAINED = 0.8
SMALL, LARGE = 1 << 12, 1 << 23  # bytes that a calibration sends


@dataclass(frozen=True)
class Link:
    """One kind of call: seconds before the first byte, bytes a second of one rank, seconds for every further peer."""

    latency: float
    bandwidth: float
    per_peer: float = 0.0

    def __post_init__(self) -> None:
        if self.latency < 0 or self.bandwidth <= 0 or self.per_peer < 0:
            raise ValueError(f"{self}: expected seconds of 0 or more, and a bandwidth above 0 bytes a second")


@dataclass(frozen=True)
class Fabric:
    """What connects ranks: a link for each kind of call."""

    all_to_all: Link
    all_gather: Link
    hop: Link

    def of(self, kind: Kind) -> Link:
        return {"all-to-all": self.all_to_all, "all-gather": self.all_gather, "hop": self.hop}[kind]


@dataclass(frozen=True)
class Links:
    """A mesh of ranks.

    Attributes:
        ranks: how many there are.
        inside: what connects those of a node.
        across: what connects nodes; None where there is one.
        node: ranks of a node; all of them where `across` is None.
        measured: on this very mesh.
    """

    name: str
    ranks: int
    inside: Fabric
    across: Fabric | None = None
    node: int = 8
    measured: bool = False

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.node < 1:
            raise ValueError(f"{self.ranks} ranks, {self.node} a node: expected 1 or more")
        if self.ranks > self.node and (self.across is None or self.ranks % self.node):
            raise ValueError(
                f"{self.ranks} ranks in nodes of {self.node}: expected whole nodes and a network between them; give "
                "`across`, or another number"
            )

    def over(self, ranks: int) -> Links:
        """The same links over another number of ranks."""
        return replace(self, ranks=ranks)

    def seconds(self, kind: Kind, sent: float, calls: int, members: Sequence[int]) -> float:
        """How long calls of one kind take together.

        Args:
            sent: bytes that one rank sends in all of them.
            members: ranks of the group that they are made in, ascending.
        """
        size, near = len(members), sum(m // self.node == members[0] // self.node for m in members)
        if size == 1 or not calls:
            return 0.0
        link = self.inside.of(kind) if near == size or self.across is None else self.across.of(kind)
        start = calls * (link.latency + (0 if kind == "hop" else link.per_peer * (size - 2)))
        if near == size or self.across is None:
            return start + sent / link.bandwidth
        if kind == "hop":  # all wait for the hop from node to node
            return start + sent / link.bandwidth
        away = sent * (size - near) / (size - 1)
        if kind == "all-gather":  # what comes to a node comes once, shared among its ranks' cards
            away /= near
        return start + max((sent if kind == "all-gather" else sent - away) / self.inside.of(kind).bandwidth,
                           away / link.bandwidth)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Links:
        """Raises ValueError on what is none."""
        try:
            across = data["across"] and fabric_of(data["across"])
            return cls(**{**data, "inside": fabric_of(data["inside"]), "across": across})
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no links: {error}") from None


def fabric_of(data: dict[str, Any]) -> Fabric:
    return Fabric(**{kind: Link(**link) for kind, link in data.items()})


def by_rate(rate: float, latency: float, per_peer: float) -> Fabric:
    """A fabric by its published rate in one direction and a hop's latency; collectives take half as long again."""
    many = Link(1.5 * latency, ATTAINED * rate, per_peer)
    return Fabric(many, many, Link(latency, ATTAINED * rate))


def same(latency: float, bandwidth: float) -> Fabric:
    """One figure by hand for every kind of call."""
    link = Link(latency, bandwidth)
    return Fabric(link, link, link)


# Rates in one direction: NVIDIA's data sheets, PCI-SIG, InfiniBand Trade Association. Latencies are assumptions.
FABRICS = {
    "nvlink3": by_rate(300e9, 10e-6, 0.5e-6),
    "nvlink4": by_rate(450e9, 10e-6, 0.5e-6),
    "nvlink5": by_rate(900e9, 10e-6, 0.5e-6),
    "pcie4": by_rate(32e9, 15e-6, 1e-6),
    "pcie5": by_rate(64e9, 15e-6, 1e-6),
    "ib-hdr": by_rate(25e9, 20e-6, 1e-6),
    "ib-ndr": by_rate(50e9, 20e-6, 1e-6),
    "ethernet-100g": by_rate(12.5e9, 40e-6, 2e-6),
}


def published(inside: str, ranks: int, across: str | None = "ib-ndr", node: int = 8) -> Links:
    """Links by published figures.

    Raises:
        ValueError: a name is unknown, or the ranks do not fill nodes.
    """
    for name in (inside, across):
        if name is not None and name not in FABRICS:
            raise ValueError(f"links {name!r}: expected one of {', '.join(FABRICS)}")
    name = inside if across is None or ranks <= node else f"{inside} in nodes of {node}, {across} between"
    return Links(name, ranks, FABRICS[inside], FABRICS[across] if across else None, node)


def calibrate(mesh: DeviceMesh, repeats: int = 5) -> Links:
    """Measure the links of a mesh; all its ranks call this together, and all get the same figures.

    Args:
        mesh: of one dimension, the ranks of a node; or of two, (nodes, ranks of a node).
        repeats: of each call, of which the median counts; the slowest rank's.
    """
    across = fabric(mesh.get_group(0), mesh.device_type, repeats) if mesh.ndim == 2 else None
    inside = fabric(mesh.get_group(mesh.ndim - 1), mesh.device_type, repeats)
    name = f"measured on {mesh.size()} {mesh.device_type} ranks"
    return Links(name, mesh.size(), inside, across, mesh.size(mesh.ndim - 1), measured=True)


def fabric(group: ProcessGroup, device: str, repeats: int = 5) -> Fabric:
    """Measure one group's links: each kind of call with few bytes and with many."""
    import torch.distributed as dist

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

    def measured(call: Callable[[Tensor], None], share: float) -> Link:
        times = [slowest(timed(call, n, size, device, repeats), group, device) for n in (SMALL, LARGE)]
        return fitted(times[0], times[1], share * SMALL, share * LARGE)

    others = (size - 1) / size
    return Fabric(measured(exchange, others), measured(gather, others), measured(hop, 1.0))


def fitted(few: float, many: float, small: float, large: float) -> Link:
    """The line through two measured times of so many bytes, its start not below 0."""
    slope = max(many - few, 1e-3 * many) / (large - small)
    return Link(max(0.0, few - slope * small), 1 / slope)


def timed(call: Callable[[Tensor], None], size: int, ranks: int, device: str, repeats: int) -> float:
    """The median time of a call with so many bytes, in seconds."""
    x = torch.zeros(size // ranks * ranks, dtype=torch.uint8, device=device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def slowest(seconds: float, group: ProcessGroup, device: str) -> float:
    """The largest of all ranks' figures, on all of them."""
    import torch.distributed as dist

    figure = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(figure, dist.ReduceOp.MAX, group=group)
    return float(figure)


def cached(path: str | Path, key: str, measure: Callable[[], Links], write: bool = True) -> Links:
    """Links that a file keeps under a key, measured where it has none.

    Args:
        key: what they hold for: devices, backend and number of ranks.
        write: only one rank should.

    Raises:
        ValueError: the file is no such file.
    """
    path = Path(path).expanduser()
    known = read(path)
    if key in known:
        return Links.from_dict(known[key])
    links = measure()
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps({**known, key: links.to_dict()}, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    return links


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
