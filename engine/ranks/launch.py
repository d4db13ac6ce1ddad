"""Where the ranks of a sharded engine run: how many, on which devices, started here or by torchrun. Values only.

Knows devices and the environment; starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from engine.model import WorldModel
from engine.opening import load
from engine.parallel.layout import Exchange, Outer
from engine.parallel.links import Links
from engine.presets import Preset
from engine.spec import rollout_of, staggered_of

OUTER: dict[str, Outer] = {"ring": "ring", "pass-q": "pass-q", "all-gather": "all-gather"}
EXCHANGES = ("auto", "ulysses", *OUTER)
BACKENDS = ("nccl", "gloo")


@dataclass(frozen=True)
class ParallelConfig:
    """How many ranks run one engine, and how.

    Attributes:
        ranks: processes, one a device; "auto" for one a GPU of this machine, or one on the CPU. Under torchrun there
            are as many as it has started.
        exchange: how they share attention: "ulysses", "ring", "pass-q" or "all-gather" over all ranks, an
            `engine.Exchange`, or "auto" for the cheapest by the planner's prices, asked again as histories grow.
        device: "cpu", "cuda" (rank r on device r) or one device that all ranks share, such as "cuda:0"; the env's by
            default, and with ranks "auto" the GPUs, if there are any.
        backend: of torch.distributed; by default "nccl" where every rank has a GPU of its own, else "gloo".
        timeout: seconds within which a rank that died, hangs or lost its link ends a request. Should one layer of a
            large model on a slow device take as long, raise it.
        snapshot_every: after so many steps all worlds are snapshotted, so that `recover` can bring them back to where
            they stood; 0 for never.
        links: what connects the ranks, for the planner; measured once by default, and kept in the user's cache.

    Raises:
        ValueError: a value that is none of those expected.
    """

    ranks: int | Literal["auto"] = "auto"
    exchange: str | Exchange = "auto"
    device: str | None = None
    backend: str | None = None
    timeout: float = 30.0
    snapshot_every: int = 0
    links: Links | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.ranks, int) and not isinstance(self.ranks, bool)
        if self.ranks != "auto" and not (whole and int(self.ranks) >= 1):
            raise ValueError(f"parallel ranks {self.ranks!r}: expected 1 or more, or 'auto'")
        if not isinstance(self.exchange, Exchange) and self.exchange not in EXCHANGES:
            raise ValueError(f"exchange {self.exchange!r}: expected one of {list(EXCHANGES)}, or an engine.Exchange")
        if self.backend not in (None, *BACKENDS):
            raise ValueError(f"backend {self.backend!r}: expected one of {list(BACKENDS)}, or None")
        if not self.timeout >= 1 or self.snapshot_every < 0:
            raise ValueError(
                f"timeout {self.timeout}, snapshot_every {self.snapshot_every}: expected at least a second, and 0 or "
                "more steps"
            )

    @classmethod
    def of(cls, value: ParallelConfig | int | str) -> ParallelConfig:
        """The config itself, or that of so many ranks, or of "auto"."""
        if isinstance(value, cls):
            return value
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"parallel {value!r}: expected a ParallelConfig, a number of ranks, or 'auto'")
        return cls(ranks=value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Torchrun:
    """What a launcher of processes, torchrun or one that sets the same variables, says of this one."""

    rank: int
    ranks: int
    local: int
    node: int
    host: str
    port: int
    agent: bool

    @classmethod
    def here(cls) -> Torchrun | None:
        """None where this process was started alone."""
        told = os.environ
        if not all(name in told for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
            return None
        rank, ranks = int(told["RANK"]), int(told["WORLD_SIZE"])
        local, node = int(told.get("LOCAL_RANK", rank)), int(told.get("LOCAL_WORLD_SIZE", ranks))
        agent = told.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank, ranks, local, node, told["MASTER_ADDR"], int(told["MASTER_PORT"]), agent)


@dataclass(frozen=True)
class Placement:
    """Where every rank runs.

    Attributes:
        kind: of all devices: "cpu" or "cuda".
        index: of the CUDA device that all ranks share; None for one each.
        backend: of torch.distributed.
        node: ranks of a machine.
    """

    ranks: int
    kind: str
    index: int | None
    backend: str
    node: int

    @classmethod
    def of(cls, config: ParallelConfig, device: str, run: Torchrun | None) -> Placement:
        """Where the ranks of a config run, on `device` where it names none.

        Raises:
            ValueError: this machine has too few devices, or torchrun has started another number of ranks.
        """
        there = torch.cuda.device_count()
        chosen = torch.device(config.device or ("cuda" if config.ranks == "auto" and there else device))
        ranks = config.ranks if config.ranks != "auto" else max(1, there) if chosen.type == "cuda" else 1
        if run is not None:
            if config.ranks not in ("auto", run.ranks):
                raise ValueError(
                    f"parallel ranks {config.ranks}, and torchrun has started {run.ranks}: leave out ranks"
                )
            ranks = run.ranks
        node = run.node if run else int(ranks)
        alone = chosen.type == "cuda" and chosen.index is None
        if chosen.type == "cuda" and (node if alone else (chosen.index or 0) + 1) > there:
            raise ValueError(
                f"{node} ranks on {chosen}: this machine has {there} CUDA devices; take fewer, let them share one with "
                "device='cuda:0', or take device='cpu'"
            )
        backend = config.backend or ("nccl" if alone else "gloo")
        if backend == "nccl" and not alone and ranks > 1:
            raise ValueError(f"backend 'nccl' on {chosen}: it needs a GPU for every rank; take backend='gloo'")
        return cls(int(ranks), chosen.type, chosen.index, backend, node)

    @property
    def alone(self) -> bool:
        """Whether every rank has a GPU of its own."""
        return self.kind == "cuda" and self.index is None

    def device(self, local: int) -> str:
        """The device of a machine's rank."""
        return "cpu" if self.kind == "cpu" else f"cuda:{local if self.index is None else self.index}"


@dataclass(frozen=True)
class ModelSource:
    """What `engine.load` is given but the device, as a value that travels.

    Attributes:
        extras: (name, value), in order.
    """

    source: str
    dtype: str | None = None
    preset: str | Preset | None = None
    extras: tuple[tuple[str, Any], ...] = field(default=())

    @classmethod
    def of(
        cls, source: str | Path, dtype: Any = None, preset: str | Preset | None = None, **extras: Any
    ) -> ModelSource:
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        plain = {key: str(x) if isinstance(x, Path) else x for key, x in extras.items()}
        told = {key: tuple(x) if isinstance(x, list) else x for key, x in plain.items()}
        return cls(str(source), name, preset, tuple(sorted(told.items())))

    def load(self, device: str) -> WorldModel:
        """See `engine.load`."""
        return load(self.source, device, self.dtype, self.preset, **dict(self.extras))

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self) | {"extras": dict(self.extras)}
        return told | {"own": isinstance(self.preset, Preset)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSource:
        preset = preset_of(data["preset"]) if data["own"] else data["preset"]
        extras = {key: tuple(x) if isinstance(x, list) else x for key, x in data["extras"].items()}
        return cls(data["source"], data["dtype"], preset, tuple(sorted(extras.items())))


def preset_of(data: Mapping[str, Any]) -> Preset:
    """A preset of the caller's own from plain JSON."""
    told = data["rollout"]
    rollout = rollout_of(told) if "steps" in told else staggered_of(told)
    return Preset(**{**data, "rollout": rollout, "size": tuple(data["size"])})


def exchange_of(name: str | Exchange, ranks: int) -> Exchange:
    """The exchange of a name over so many ranks.

    Raises:
        ValueError: an exchange of another number of ranks.
    """
    if isinstance(name, Exchange):
        if name.ranks != ranks:
            raise ValueError(f"exchange {name} is of {name.ranks} ranks: expected one of {ranks}")
        return name
    if ranks == 1:
        return Exchange()
    return Exchange(ranks) if name == "ulysses" else Exchange(1, OUTER[name], ranks)
