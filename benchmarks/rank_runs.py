"""A world's block under every exchange, on the ranks of the default group, and what the formulas say of each."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.devices import calibrated
from benchmarks.rank_kernels import Timer
from benchmarks.rank_links import links_between_products
from benchmarks.rank_worlds import Case, step
from engine.engine import Engine
from engine.model import WorldModel
from engine.parallel.agreement import wire
from engine.parallel.calibration import slowest
from engine.parallel.layout import Exchange, Numbers
from engine.parallel.machines import Machine
from engine.parallel.mesh import Mesh
from engine.parallel.prices import Option, Setting, candidates, options, price
from engine.parallel.shapes import Shape, shape_at
from engine.parallel.sharding import shard

WARM = 2  # blocks before those that are timed


class Contender:
    """One exchange: an engine on this rank, its world, and what was measured. Of one rank, the first rank's alone."""

    def __init__(self, case: Case, model: WorldModel, exchange: Exchange):
        self.exchange, self.device = exchange, model.device
        self.mesh = Mesh.of(exchange, model.device)
        self.seconds: list[float] = []
        self.held = 0
        self.runs = exchange.ranks > 1 or dist.get_rank() == 0
        if self.runs:
            self.sim = Engine(shard(model, self.mesh), deterministic=False)
            self.world = case.begin(self.sim)

    def turn(self) -> Shape:
        """Make a block, all ranks at once; what it was."""
        self._wait()
        dist.barrier()
        shape, before, started = None, self._peak(anew=True), time.perf_counter()
        self.mesh.reset_counts()
        if self.runs:
            shape = shape_at(self.sim.spec, self.world.table.length, self.sim.policy)
            step(self.sim, self.world)
            self._wait()
        took = time.perf_counter() - started if self.runs else 0.0
        self.seconds.append(slowest(took, dist.group.WORLD, str(wire())))
        self.held = self._peak() - before
        return shape or Shape(1, 0)

    @property
    def typical(self) -> float:
        """Seconds of a block: the median."""
        return statistics.median(self.seconds[WARM:])

    def latents(self) -> Tensor | None:
        return self.world.latents if self.runs else None

    def _peak(self, anew: bool = False) -> int:
        """Bytes that were allocated at most since the last time that it began anew; 0 on a CPU, which does not say."""
        if self.device.type != "cuda":
            return 0
        if anew:
            torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measured(case: Case, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """A row of a case, with one for each exchange; the same on all ranks."""
    ranks, model, timer = dist.get_world_size(), case.model(device, dtype), Timer(device, dtype, repeats)
    links = links_between_products(timer)
    made = [Contender(case, model, exchange) for exchange in possible(case, ranks)]
    rows: list[dict[str, Any]] = [{} for _ in made]
    for _ in range(WARM + repeats):
        shapes = [contender.turn() for contender in made]
        for contender, row in zip(made, rows, strict=True):
            row["off"] = max(row.get("off", 0.0), apart(contender, made[0]))
    shape = shared_shape(shapes[0])
    machine = replace(agreed(calibrated(timer, case, made[0].typical)), hidden=hidden(timer))
    setting = Setting(case.spec, links, machine.memory, machine, Numbers(dtype.itemsize))
    weights = weight_bytes(model)
    rows = [row | described(c, price(setting, [shape], c.exchange), weights) for c, row in zip(made, rows, strict=True)]
    pick = options(setting, [shape])[0].exchange
    best = min(row["ms"] for row in rows)
    chosen = next(row["ms"] for row, c in zip(rows, made, strict=True) if c.exchange == pick)
    return {
        "case": case.name, "new": shape.new, "history": shape.history, "pick": str(pick), "regret": chosen / best - 1,
        "exchanges": rows, "links": links.to_dict(), "machine": asdict(machine),
    }  # fmt: skip


def possible(case: Case, ranks: int) -> list[Exchange]:
    """One rank, and all exchanges over all ranks.

    Raises:
        ValueError: there are fewer tokens than ranks.
    """
    if ranks > case.spec.stream.tokens:
        raise ValueError(
            f"{case.name}: {case.spec.stream.tokens} tokens of a latent frame are fewer than {ranks} ranks"
        )
    return candidates(ranks)


def hidden(timer: Timer) -> float:
    """How much of a hop costs nothing beside a product that takes as long, 0 to 1; the first rank's figure, on all."""
    mesh = Mesh.of(Exchange(1, "ring", dist.get_world_size()), timer.device)
    a, x = timer.random(512, 512), torch.zeros(1 << 20, dtype=torch.uint8, device=timer.device)
    one, hop = timer.seconds(lambda: a @ a), timer.seconds(lambda: mesh.pass_on("", x, len(x)).wait())
    count = torch.tensor(max(1, round(hop / one)), device=wire())
    dist.broadcast(count, 0)

    def products() -> None:
        for _ in range(int(count)):
            a @ a

    def beside() -> None:
        posted = mesh.pass_on("", x, len(x))
        products()
        posted.wait()

    alone, both = timer.seconds(products), timer.seconds(beside)
    share = torch.tensor((alone + hop - both) / min(alone, hop), dtype=torch.float64, device=wire()).clamp(0, 1)
    dist.broadcast(share, 0)
    return float(share)


def described(contender: Contender, option: Option, weights: int) -> dict[str, Any]:
    """What was measured of an exchange on all ranks, beside what the formulas say. Args: weights: their bytes."""
    names = sorted(set(contender.mesh.sent))
    sent = gathered(sum(contender.mesh.sent.values()))
    cached = max(gathered(contender.sim.pool.device_bytes if contender.runs else 0))
    besides = max(gathered(contender.held))
    return {
        "exchange": str(contender.exchange),
        "ms": 1e3 * contender.typical,
        "predicted_ms": 1e3 * option.seconds,
        "sent_bytes": sent if contender.exchange.ranks > 1 else [0],
        "predicted_bytes": list(option.sent),
        "calls": sum(contender.mesh.calls.values()),
        "predicted_calls": option.calls,
        "names": names,
        "cache_bytes": cached,
        "held_bytes": weights + cached + besides if besides else None,
        "predicted_held_bytes": option.memory,
    }


def weight_bytes(model: WorldModel) -> int:
    assert isinstance(model.denoiser, nn.Module)
    return sum(x.nbytes for x in model.denoiser.state_dict().values())


def apart(contender: Contender, one: Contender) -> float:
    """How far a contender's latents are from one rank's, over the largest of them; on the first rank, 0 on others."""
    mine, whole = contender.latents(), one.latents()
    if mine is None or whole is None:
        return 0.0
    return float((mine - whole).abs().max() / whole.abs().max())


def agreed(machine: Machine) -> Machine:
    """The first rank's figures, on all."""
    names = [name for name, value in asdict(machine).items() if isinstance(value, float)]
    figures = torch.tensor([getattr(machine, name) for name in names], dtype=torch.float64, device=wire())
    dist.broadcast(figures, 0)
    return Machine(**asdict(machine) | dict(zip(names, figures.tolist(), strict=True)))


def shared_shape(shape: Shape) -> Shape:
    """The first rank's, on all."""
    numbers = torch.tensor([shape.new, shape.history, shape.choices], device=wire())
    dist.broadcast(numbers, 0)
    return Shape(*numbers.tolist())


def gathered(value: int) -> list[int]:
    """Every rank's number."""
    own = torch.tensor([value], device=wire())
    made = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(made, own)
    return [int(x) for x in made]
