"""What it takes to move bytes between ranks: latency and bandwidth of each kind of collective.

A call takes `latency + bytes / bandwidth`, for the bytes that one rank sends (see costs.py). Figures are published
ones, given by hand, or measured on the mesh itself (calibration.py). Values only.

Published bandwidths are `ATTAINED` of a link's rate in one direction; latencies are assumed. A node's ranks reach
those of other nodes each over a network card of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.parallel.costs import Kind

ATTAINED = 0.8


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

    def seconds(self, kind: Kind, sent: float, calls: int, size: int, near: int) -> float:
        """How long calls of one kind take together.

        Args:
            sent: bytes that one rank sends in all of them.
            size: ranks of the group that they are made in.
            near: how many of these share a node.
        """
        if size == 1 or not calls:
            return 0.0
        inside = near == size or self.across is None
        link = self.inside.of(kind) if inside or self.across is None else self.across.of(kind)
        start = calls * (link.latency + (0 if kind == "hop" else link.per_peer * (size - 2)))
        if inside or kind == "hop":  # hops all wait for the one from node to node
            return start + sent / link.bandwidth
        away = sent * (size - near) / (size - 1)
        if kind == "all-to-all":
            return start + max((sent - away) / self.inside.all_to_all.bandwidth, away / link.bandwidth)
        # What comes to a node in an all-gather comes once, over the cards of those who share it.
        return start + max(sent / self.inside.all_gather.bandwidth, away / near / link.bandwidth)

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
