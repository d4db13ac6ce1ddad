"""python -m agents.curves RUN [RUN ...] --out PNG: return in the dream and in the real env over training, of some runs.

A run is a folder that `agents.ppo` wrote; its log.csv is read. Knows files and Matplotlib; trains nothing.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from inferix_env.outputs import make_folder

Rows = Sequence[Mapping[str, Any]]
# Updates over which the dream's return is smoothed.
SMOOTH = 9


@dataclass(frozen=True)
class Settings:
    """Draw runs.

    Attributes:
        runs: folders of `agents.ppo`.
        out: the picture to write.
        where: what the runs learned in, for the legend.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("out/curves.png")
    where: str = "dream"


def read_log(run: Path) -> Rows:
    """The rows of a run's log, as numbers.

    Raises:
        ValueError: it has none.
    """
    path = run.expanduser() / "log.csv"
    try:
        with path.open(newline="") as file:
            rows = [{name: float(x) if x else None for name, x in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Expected the folder of a run of agents.ppo") from None
    if not rows or not {"steps", "return", "real_return"} <= set(rows[0]):
        raise ValueError(f"{path} is no log of agents.ppo: expected steps, return and real_return")
    return rows


def plot_gap(path: Path, runs: Sequence[Rows], where: str) -> None:
    """Plot what an episode pays where policies learn, and in the real env, over training; a shade for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, rows in enumerate(runs):
        shade = 1 - 0.6 * i / len(runs)
        said = f"{where}: reward for each end, while learning", "real env: return of an episode"
        labels = ("", "") if i else said
        steps, returns = np.array([r["steps"] for r in rows]), np.array([r["return"] for r in rows])
        kernel = np.ones(min(SMOOTH, len(rows)))
        smooth = np.convolve(returns, kernel, "same") / np.convolve(np.ones(len(rows)), kernel, "same")
        if len(runs) == 1:
            axes.plot(steps, returns, color="C0", alpha=0.25)
        axes.plot(steps, smooth, color="C0", alpha=shade, label=labels[0])
        real = [(r["steps"], r["real_return"]) for r in rows if r["real_return"] is not None]
        if real:
            axes.plot(*zip(*real, strict=True), "o-", color="C1", alpha=shade, label=labels[1])
    axes.set(xlabel="env steps learned from", ylabel="return", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m agents.curves", description=__doc__)
    try:
        runs = [read_log(run) for run in settings.runs]
        if not runs:
            raise ValueError("no runs: give folders that agents.ppo wrote")
        make_folder(settings.out.parent)
        plot_gap(settings.out, runs, settings.where)
    except ImportError as error:
        print(f"error: the plot needs matplotlib: pip install 'inferix-env[train]' ({error})", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {settings.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
