"""Mesh: the process groups of one exchange, and its calls of collectives, which count what they send.

Rank r is (outer, inner): inner ranks follow one another. Tensors go as bytes, so that every backend takes every type;
bytes and calls are counted by the names that costs.py prices. Knows torch.distributed; does not know attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from engine.parallel.agreement import agree, wire
from engine.parallel.costs import Where
from engine.parallel.layout import Exchange

# Its name since torch 2.13, and before.
GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Ranks:
    """Those of a group.

    Attributes:
        rank: this process's among them.
        members: all of them, by their numbers in the default group.
    """

    rank: int
    members: tuple[int, ...]
    group: ProcessGroup | None = None

    @property
    def size(self) -> int:
        return len(self.members)

    def at(self, step: int) -> int:
        """The member so many steps further on, by its number in the default group."""
        return self.members[(self.rank + step) % self.size]


class Mesh:
    """The ranks of an exchange.

    Attributes:
        inner, outer, all: those who trade heads, those of the outer exchange, and all.
        sent: bytes of this rank's tensors that other ranks got, by name.
        calls: of collectives, and hops, by name.
    """

    def __init__(self, exchange: Exchange, device: torch.device, inner: Ranks, outer: Ranks, everyone: Ranks):
        self.exchange, self.device = exchange, device
        self.inner, self.outer, self.all = inner, outer, everyone
        self.wire = wire() if everyone.group else device
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @classmethod
    def of(cls, exchange: Exchange, device: str | torch.device = "cpu") -> Mesh:
        """The mesh of an exchange over the default group; all its ranks call this together.

        An exchange of one rank needs no group: every process then computes everything.

        Raises:
            ValueError: there are more ranks, or fewer, than the exchange has, or they were given different exchanges.
        """
        device = torch.device(device)
        if exchange.ranks == 1:
            alone = Ranks(0, (0,))
            return cls(exchange, device, alone, alone, alone)
        if not dist.is_initialized() or dist.get_world_size() != exchange.ranks:
            there = dist.get_world_size() if dist.is_initialized() else 0
            raise ValueError(
                f"{exchange} needs {exchange.ranks} ranks and the process group has {there}: start as many "
                "(torchrun, or ParallelConfig), or take another exchange"
            )
        agree({"exchange": str(exchange)})
        world = dist.group.WORLD
        assert world is not None
        made = groups(world, exchange.groups, exchange.ulysses, wire().type)
        inner, outer = (ranks_of(made.get_group(name)) for name in ("inner", "outer"))
        return cls(exchange, device, inner, outer, ranks_of(world))

    @property
    def rank(self) -> int:
        return self.all.rank

    @property
    def ranks(self) -> int:
        return self.exchange.ranks

    def close(self) -> None:
        """Nothing: groups are kept for the next mesh of the same shape, until the process group ends."""

    def reset_counts(self) -> None:
        self.sent.clear()
        self.calls.clear()

    def those(self, where: Where) -> Ranks:
        """The ranks of one kind of group."""
        return {"inner": self.inner, "outer": self.outer, "all": self.all}[where]

    def all_to_all(self, name: str, parts: Sequence[Tensor], sizes: Sequence[int], where: Where) -> list[Tensor]:
        """A part to each of a group, and one from each.

        Args:
            parts: of any shapes and one type.
            sizes: numbers that each sends to this rank.

        Returns:
            flat tensors, this rank's own among them.
        """
        ranks, (like, *_) = self.those(where), parts
        flat, width = [x.reshape(-1) for x in parts], like.element_size()
        out = torch.empty(sum(sizes) * width, dtype=torch.uint8, device=self.wire)
        counts = [x.numel() * width for x in flat]
        into = [n * width for n in sizes]
        dist.all_to_all_single(out, as_bytes(torch.cat(flat), self.wire), into, counts, group=ranks.group)
        self._count(name, sum(counts) - counts[ranks.rank])
        return list(from_bytes(out, like, self.device).split(list(sizes)))

    def gather(self, name: str, x: Tensor, sizes: Sequence[int], where: Where = "all") -> list[Tensor]:
        """Every rank's tensor, flat, of so many numbers each."""
        ranks, width = self.those(where), x.element_size()
        own = as_bytes(x.reshape(-1), self.wire)
        self._count(name, own.numel() * (ranks.size - 1))
        if len(set(sizes)) == 1:
            out = own.new_empty(ranks.size * own.numel())
            GATHER(out, own, group=ranks.group)
            return list(from_bytes(out, x, self.device).chunk(ranks.size))
        made = [own.new_empty(n * width) for n in sizes]
        made[ranks.rank] = own
        others = [i for i in range(ranks.size) if i != ranks.rank]
        there = [(dist.isend, own, i) for i in others if own.numel()]
        self._post(ranks, [*there, *((dist.irecv, made[i], i) for i in others if sizes[i])]).wait()
        return [from_bytes(part, x, self.device) for part in made]

    def pass_on(self, name: str, x: Tensor, size: int, where: Where = "outer") -> Posted:
        """Begin to send a tensor of bytes to the next rank of a ring, and to receive one of `size` bytes."""
        ranks, own = self.those(where), as_bytes(x, self.wire)
        self._count(name, own.numel())
        into = own.new_empty(size)
        following, previous = (ranks.rank + 1) % ranks.size, (ranks.rank - 1) % ranks.size
        return self._post(ranks, [(dist.isend, own, following), (dist.irecv, into, previous)])

    def trade(self, name: str, out: Mapping[int, Tensor], into: Mapping[int, Tensor]) -> None:
        """Send tensors to some ranks and receive others, all together, by rank of the whole mesh."""
        sends = {peer: as_bytes(x, self.wire) for peer, x in out.items()}
        made = {peer: as_bytes(torch.empty_like(x), self.wire) for peer, x in into.items()}
        self._count(name, sum(x.numel() for x in sends.values()))
        moves = [(dist.isend, x, peer) for peer, x in sends.items()]
        self._post(self.all, [*moves, *((dist.irecv, x, peer) for peer, x in made.items())]).wait()
        for peer, x in into.items():
            x.copy_(from_bytes(made[peer], x, self.device).view(x.shape))

    def broadcast(self, name: str, x: Tensor, source: int = 0) -> Tensor:
        """One rank's tensor on all of them."""
        own = as_bytes(x, self.wire).clone()
        dist.broadcast(own, self.all.members[source], group=self.all.group)
        self._count(name, own.numel() * (self.ranks - 1) if self.rank == source else 0)
        return from_bytes(own, x, self.device).view(x.shape)

    def collect(self, name: str, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's tensor, flat, of so many numbers each, on rank 0; nothing on others."""
        own = as_bytes(x.reshape(-1), self.wire)
        if self.rank:
            self._count(name, own.numel())
            self._post(self.all, [(dist.isend, own, 0)] if own.numel() else []).wait()
            return []
        made = [own, *(own.new_empty(n * x.element_size()) for n in sizes[1:])]
        self._post(self.all, [(dist.irecv, part, i) for i, part in enumerate(made) if i and part.numel()]).wait()
        return [from_bytes(part, x, self.device) for part in made]

    def _post(self, ranks: Ranks, moves: list) -> Posted:
        """Begin to send and receive: (operation, tensor, member of the group)."""
        made = [dist.P2POp(op, x, ranks.members[peer], ranks.group) for op, x, peer in moves]
        return Posted(self, [x for _, x, _ in moves], dist.batch_isend_irecv(made) if made else [])

    def _count(self, name: str, num_bytes: int) -> None:
        self.sent[name] += num_bytes
        self.calls[name] += 1


class Posted:
    """Sends and receives that are under way; their tensors live until they are through."""

    def __init__(self, mesh: Mesh, tensors: list[Tensor], works: list[dist.Work]):
        self.mesh, self.tensors, self.works = mesh, tensors, works

    def wait(self) -> None:
        for work in self.works:
            work.wait()

    def received(self) -> Tensor:
        """The bytes of the last tensor, once all is through."""
        self.wait()
        return self.tensors[-1].to(self.mesh.device)


@cache
def groups(world: ProcessGroup, outer: int, inner: int, device: str) -> DeviceMesh:
    """Made once for a process group, and kept as long as the process."""
    return init_device_mesh(device, (outer, inner), mesh_dim_names=("outer", "inner"))


def ranks_of(group: ProcessGroup) -> Ranks:
    return Ranks(dist.get_rank(group), tuple(dist.get_process_group_ranks(group)), group)


def as_bytes(x: Tensor, wire: torch.device) -> Tensor:
    """A tensor's bytes, flat, where the backend can send them."""
    return x.contiguous().reshape(-1).view(torch.uint8).to(wire)


def from_bytes(x: Tensor, like: Tensor, device: torch.device) -> Tensor:
    """Flat numbers of the type of another tensor."""
    return x.to(device).view(like.dtype)
