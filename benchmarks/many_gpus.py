"""python -m benchmarks.many_gpus: every model's block over 1 to 256 devices by formula: plots, and how many it takes.

    python -m benchmarks.many_gpus --out docs/images

For each model: time of a block, efficiency, memory of a device and the exchange chosen, in islands of 8 over NVLink
with InfiniBand between; and, over several kinds of device, the fewest that keep up with playback. Denoising alone,
without decoding. Modelled, not measured: see docs/many-gpus.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.plan_ranks import RanksConfig, rank_sweep
from engine.parallel.layout import Exchange
from engine.parallel.simulate import Point, furthest, least
from inferix_env.record import write_text

MODELS = {
    "self-forcing": "Self Forcing 1.3B",
    "longlive": "LongLive 1.3B",
    "matrix-game-2-universal": "Matrix-Game 2",
    "krea": "Krea Realtime 14B",
    "magi-4.5b-distill-8step": "MAGI-1 4.5B, 8 steps",
    "magi-4.5b-distill": "MAGI-1 4.5B, 64 steps",
    "magi-24b-distill-8step": "MAGI-1 24B, 8 steps",
    "doom": "Doom: Take Cover",
}
MACHINES = (
    ("a100", "nvlink3", "ib-hdr"),
    ("h100", "nvlink4", "ib-ndr"),
    ("h200", "nvlink4", "ib-ndr"),
    ("b200", "nvlink5", "ib-ndr"),
    ("4090", "pcie4", "ethernet-100g"),
)
COLOURS = {"one rank": "#888888", "Ulysses": "#1f77b4", "ring pass-KV": "#d62728", "ring pass-Q": "#9467bd",
           "all-gather": "#2ca02c", "Ulysses x ring pass-KV": "#ff7f0e", "Ulysses x ring pass-Q": "#e377c2",
           "Ulysses x all-gather": "#17becf"}  # fmt: skip
SHORT = {"ring": "ring pass-KV", "pass-q": "ring pass-Q", "all-gather": "all-gather"}


@dataclass(frozen=True)
class Config:
    """What to draw.

    Attributes:
        out: folder of the plots many-gpus-*.png.
        machine, links, across: of the plots; see benchmarks/plan_ranks.py.
        table: write the table of devices to a file as Markdown; it is printed too.
    """

    out: Path = Path("docs/images")
    machine: str = "h100"
    links: str = "nvlink4"
    across: str = "ib-ndr"
    table: Path | None = None


def kind_of(exchange: Exchange) -> str:
    """What colour an exchange has."""
    if exchange.ranks == 1:
        return "one rank"
    parts = ["Ulysses"] if exchange.ulysses > 1 else []
    return " x ".join([*parts, SHORT[exchange.outer]] if exchange.outer else parts)


def all_sweeps(config: RanksConfig) -> dict[str, list[Point]]:
    """Each model's sweep."""
    return {name: rank_sweep(replace(config, preset=name)) for name in MODELS}


def draw(sweeps: dict[str, list[Point]], config: RanksConfig, what: str) -> Any:
    """A figure with a panel a model; `what` is "time", "efficiency" or "memory"."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.4), dpi=90, layout="constrained")
    used: dict[str, None] = {}
    for i, (name, points) in enumerate(sweeps.items()):
        axes = figure.add_subplot(2, 4, i + 1)
        axes.set_title(MODELS[name], fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 16, 32, 64, 128, 256], ["1", "2", "4", "8", "16", "32", "64", "128", "256"])
        axes.set_xlim(0.9, 290)
        axes.minorticks_off()
        panel(axes, name, points, config, what)
        used |= {kind_of(p.pick.exchange): None for p in points if p.fits}
        axes.axvline(config.node, color="#bbbbbb", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [figure.axes[0].plot([], [], "o", color=COLOURS[kind], label=kind)[0] for kind in COLOURS if kind in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    device = config.device
    title = {"time": "Time of a block", "efficiency": "Efficiency", "memory": "Memory of a device"}[what]
    figure.suptitle(
        f"{title} over the number of devices, modelled{'' if device.measured else ', not measured'}: {device.name}, "
        f"{config.links} in nodes of {config.node} (dotted), {config.across} between"
    )
    return figure


def panel(axes: Any, name: str, points: Sequence[Point], config: RanksConfig, what: str) -> None:
    """One model: a line, and a dot for each number of devices in the colour of what is chosen."""
    spec = replace(config, preset=name).spec
    fitting = [p for p in points if p.fits]
    ranks, values = [p.ranks for p in fitting], [value(p, what) for p in fitting]
    axes.plot(ranks, values, color="#bbbbbb", linewidth=1.2, zorder=1)
    axes.scatter(ranks, values, c=[COLOURS[kind_of(p.pick.exchange)] for p in fitting], s=26, zorder=2)
    refused = [p for p in points if not p.fits]
    if what == "memory":
        limit = config.device.memory / 1e9
        axes.axhline(limit, color="#d62728", linewidth=0.9, linestyle="--", label=f"{limit:.0f} GB may be used")
        held = [(p.ranks, value(p, what)) for p in refused if p.pick.memory]
        axes.scatter([r for r, _ in held], [v for _, v in held], marker="x", color="#d62728", s=28)
        axes.set_ylim(0, max([limit, *values, *(v for _, v in held)]) * 1.08)
        axes.set_ylabel("GB of a device")
    if what == "efficiency":
        axes.set_ylim(0, 105)
        axes.set_ylabel("%")
    if what == "time":
        axes.set_yscale("log")
        seconds = spec.block * spec.frames_per_latent / spec.fps
        axes.axhline(seconds * 1e3, color="#555555", linewidth=0.9, linestyle="--", label=f"{spec.fps:g} frames/s")
        axes.plot(ranks, [value(fitting[0], what) * ranks[0] / r for r in ranks], color="#dddddd", linewidth=0.9,
                  label="ideal", zorder=0)  # fmt: skip
        axes.set_ylabel("ms a block")
    if what != "efficiency":
        axes.legend(fontsize=8, frameon=False, loc="lower left")


def value(point: Point, what: str) -> float:
    """What is drawn of a number of devices."""
    return {"time": point.pick.seconds * 1e3, "efficiency": 100 * point.efficiency, "memory": point.pick.memory / 1e9}[
        what
    ]


def rows(config: RanksConfig) -> list[list[str]]:
    """Of each model on each kind of device: the fewest that keep up with playback, and the most that half pay."""
    made = []
    for name, title in MODELS.items():
        cells = [title]
        for machine, links, across in MACHINES:
            given = replace(config, preset=name, machine=machine, links=links, across=across)
            points, spec = rank_sweep(given), replace(config, preset=name).spec
            cells.append(cell(points, spec.block * spec.frames_per_latent / spec.fps))
        made.append(cells)
    return made


def cell(points: Sequence[Point], seconds: float) -> str:
    """How many devices it takes, at what efficiency, and the fastest there is where none suffice."""
    enough, edge = least(points, seconds), furthest(points)
    worth = f"; worth it to {edge.ranks}" if edge else ""
    if enough is not None:
        return f"{enough.ranks} ({100 * enough.efficiency:.0f} %){worth}"
    fitting = [p for p in points if p.fits]
    if not fitting:
        return "does not fit"
    fastest = min(fitting, key=lambda p: p.pick.seconds)
    return f"no: {seconds / fastest.pick.seconds:.2f} x at {fastest.ranks}{worth}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    head = ["model", *(f"{m.upper()}, {links}" for m, links, _ in MACHINES)]
    lines = [head, ["---"] * len(head), *table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    try:
        config = tyro.cli(Config, description=__doc__)
        base = RanksConfig(machine=config.machine, links=config.links, across=config.across)
        sweeps = all_sweeps(base)
        table = markdown(rows(base))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    config.out.mkdir(parents=True, exist_ok=True)
    try:
        for what in ("time", "efficiency", "memory"):
            draw(sweeps, base, what).savefig(config.out / f"many-gpus-{what}.png")
    except ImportError:
        raise SystemExit("error: the plots need matplotlib: pip install 'inferix-env[evaluate]'") from None
    print(table)
    if config.table:
        write_text(config.table, table)


if __name__ == "__main__":
    main()
