"""python -m benchmarks.many_worlds: what one engine makes of N worlds, against N engines that take turns.

Three ways of stepping N worlds alternate in one process: one engine, deterministic (a world's bits do not depend on
its company); one engine that is not; and, as the baseline, N engines of one world each, stepped one after another,
with the same weights and a pool each. Every history is full and no two worlds share a page. Medians of interleaved
rounds, so a machine whose speed drifts is fair to all. Frames stay on the device. One row for each N; writes them as
JSON with --out, and a plot with --plot. Knows engines; knows no env.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.machine import describe
from benchmarks.step import now
from engine import Block, Condition, Engine, Start, World, WorldModel
from inferix_env import worlds
from inferix_env.actions import space_of
from inferix_env.evaluation.plots import COLOURS, Axes, Line, plot
from inferix_env.record import write_sheet, write_text

PASTS = 8  # different histories; world i goes on from the (i mod PASTS)-th


@dataclass(frozen=True)
class ManyWorldsConfig:
    """What to measure.

    Attributes:
        world: a shipped world's name, or a folder.
        device: where to run.
        worlds: the Ns.
        world_steps: timed steps of worlds for each N and each way; N of them make one step.
        least: timed steps for each N and each way, at least. The 99th percentile of so few is their largest.
        rounds: turns that the ways take.
        out: where to write the rows as JSON.
        plot: where to draw them, as a PNG (needs the extra `evaluate`).
    """

    world: str = "doom-take-cover"
    device: str = "cpu"
    worlds: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    world_steps: int = 384
    least: int = 6
    rounds: int = 6
    out: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        counts = (*self.worlds, self.world_steps, self.least, self.rounds)
        if not self.worlds or min(counts) < 1:
            raise ValueError(f"{self}: expected at least one N, and every count from 1")
        if self.plot is not None and not find_spec("matplotlib"):
            raise ValueError("--plot needs matplotlib: pip install 'inferix-env[evaluate]'")


class Contender:
    """Engines and their worlds under random actions, the same for every contender of one seed."""

    def __init__(self, crews: list[tuple[Engine, list[World]]], seed: int = 0):
        self.crews, self.spec = crews, crews[0][0].spec
        self.space = space_of(self.spec.actions)
        self.space.seed(seed)
        self.blocks: list[Block] = []

    def step(self) -> float:
        """Step every world; the seconds that took. Drawing the actions is not counted."""
        drawn = [[self._condition() for _ in members] for _, members in self.crews]
        started = now()
        rows = [sim.step(members, row) for (sim, members), row in zip(self.crews, drawn, strict=True)]
        seconds = now() - started
        self.blocks = [block for row in rows for block in row]
        return seconds

    @property
    def kv_bytes(self) -> int:
        """Bytes of the pages that worlds hold."""
        return sum(sim.pool.num_held * sim.pool.page_bytes for sim, _ in self.crews)

    @property
    def kv_bytes_allocated(self) -> int:
        """Bytes of all pages there are, held or not."""
        return sum(sim.pool.device_bytes for sim, _ in self.crews)

    def _condition(self) -> Condition:
        encoded = self.spec.actions.encode(self.space.sample())
        return Condition.of(np.tile(encoded, (self.spec.block, 1)))


def interleaved(ways: Mapping[str, Callable[[], float]], count: int, rounds: int) -> dict[str, list[float]]:
    """What `count` calls of each way return (seconds), the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            times[name] += [way() for _ in range(count * turn // rounds, count * (turn + 1) // rounds)]
    return times


def opening(folder: Path, index: int, count: int | None = None) -> Start:
    """A shipped opening of a world, or `count` latent frames made of it by playing it over and over."""
    frames, actions, variables = (rows[index % len(rows)] for rows in worlds.starts(folder))
    order = np.arange(len(frames) if count is None else count) % len(frames)
    return Start(frames[order], actions[order], variables[order])


def full(sim: Engine) -> int:
    """Latent frames after which a world of this engine holds all the history it may see, a multiple of the block."""
    block, span = sim.spec.block, sim.policy.early + (sim.policy.window or 12)
    return -(-span // block) * block


def pasts(model: WorldModel, folder: Path) -> list[bytes]:
    """Snapshots of worlds with full histories, of several ages."""
    sim, blobs = Engine(model), []
    for i in range(PASTS):
        world = sim.open(opening(folder, i, full(sim) + i % 4 * sim.spec.block), seed=i)
        blobs.append(sim.snapshot(world))
        sim.close(world)
    return blobs


def contenders(model: WorldModel, blobs: list[bytes], n: int) -> dict[str, Contender]:
    """The three ways of stepping `n` worlds, by name."""

    def crew(deterministic: bool, rows: range) -> tuple[Engine, list[World]]:
        sim = Engine(model, max_worlds=len(rows), deterministic=deterministic)
        return sim, [sim.restore(blobs[i % len(blobs)]) for i in rows]

    return {
        "deterministic": Contender([crew(True, range(n))]),
        "fast": Contender([crew(False, range(n))]),
        "separate": Contender([crew(False, range(i, i + 1)) for i in range(n)]),
    }


def measure(config: ManyWorldsConfig, model: WorldModel, blobs: list[bytes], n: int) -> dict:
    """The row of one N."""
    ways = contenders(model, blobs, n)
    for way in ways.values():
        way.step()
    count = max(config.least, config.world_steps // n)
    times = interleaved({name: way.step for name, way in ways.items()}, count, config.rounds)
    row: dict = {"world": config.world, "device": config.device, **describe(), "worlds": n, "steps": count}
    for name, way in ways.items():
        row |= {f"{name}_world_steps_per_s": n / float(np.median(times[name])), **percentiles(times[name], name)}
        row |= {f"{name}_kv_bytes": way.kv_bytes, f"{name}_kv_bytes_allocated": way.kv_bytes_allocated}
    for name in ("deterministic", "fast"):
        row[f"{name}_speedup_over_separate"] = row["separate_p50_ms"] / row[f"{name}_p50_ms"]
    return row


def percentiles(seconds: list[float], name: str = "") -> dict[str, float]:
    """Median and 99th percentile in milliseconds, their names led by `name`."""
    lead = f"{name}_" if name else ""
    return {f"{lead}p{q}_ms": float(np.percentile(seconds, q)) * 1e3 for q in (50, 99)}


def run(config: ManyWorldsConfig) -> list[dict]:
    """Measure; one row for each N."""
    folder = worlds.find(config.world)
    model = worlds.model(folder, config.device, None)
    blobs = pasts(model, folder)
    return [measure(config, model, blobs, n) for n in config.worlds]


def picture(rows: list[dict]) -> np.ndarray:
    """The rows as curves over N, uint8 [h, w, 3]."""
    n = [row["worlds"] for row in rows]

    def panel(title: str, y: str, curves: dict[str, str], scale: float = 1.0, log_y: bool = False) -> Axes:
        lines = [
            Line(label, n, [row[column] / scale for row in rows], colour)
            for (column, label), colour in zip(curves.items(), COLOURS, strict=False)
        ]
        return Axes(title, "worlds", y, lines, ticks=n, log_x=True, log_y=log_y, floor=None if log_y else 0.0)

    labels = {"deterministic": "one engine, deterministic", "fast": "one engine", "separate": "N engines in turn"}
    speeds, medians = ({f"{name}_{x}": y for name, y in labels.items()} for x in ("world_steps_per_s", "p50_ms"))
    pages = {
        "fast_kv_bytes": "held",
        "fast_kv_bytes_allocated": "one engine",
        "separate_kv_bytes_allocated": "N engines",
    }
    machine = rows[0]["cpu" if rows[0]["device"] == "cpu" else "gpu"]
    return plot(
        [
            panel(f"{Path(rows[0]['world']).name} on {machine}", "steps of worlds a second", speeds),
            panel("One step of all worlds", "median, ms", medians, log_y=True),
            panel("KV pages held, and allocated by", "MB", pages, 1e6),
        ]
    )


def show(rows: list[dict]) -> None:
    """Print rows that have the same names side by side; what is the same in all of them, once."""
    for name in rows[0]:
        values = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (row[name] for row in rows)]
        print(f"{name:34} " + (values[0] if len(set(values)) == 1 else " ".join(f"{v:>18}" for v in values)))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")


def main() -> None:
    try:
        config = tyro.cli(ManyWorldsConfig, description=__doc__)
        rows = run(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    show(rows)
    if config.out:
        write_rows(config.out, rows)
    if config.plot:
        config.plot.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(config.plot, picture(rows)[None], columns=1, scale=1)


if __name__ == "__main__":
    main()
