"""Plots as pictures: lines, steps and bars on labelled axes, targets as dashed lines.

Knows matplotlib, as heat.py does, and uses no global state of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

Panel = TypeVar("Panel")

REAL, DREAM, TARGET = "#222222", "#1f6fb4", "#c0392b"
COLOURS = ("#1f6fb4", "#d98200", "#2e8b57", "#7d4fa3")


@dataclass(frozen=True)
class Line:
    """y over x.

    Attributes:
        style: line, curve, points, dots, steps or bars; the last two take the n + 1 edges of their bins as x.
        error: how far y may be off, [n], or below and above it [2, n].
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: str = DREAM
    style: str = "line"
    error: Sequence[float] | np.ndarray | None = None


@dataclass(frozen=True)
class Axes:
    """One panel. `targets` are drawn across it; `band` is shaded between (low, high); `names` stand at x = 0, 1, ..."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    targets: Sequence[float] = ()
    band: tuple[float, float] | None = None
    ticks: Sequence[float] = ()
    names: Sequence[str] = ()
    log_x: bool = False
    log_y: bool = False
    floor: float | None = None
    diagonal: bool = False
    notes: Sequence[tuple[float, float, str]] = field(default_factory=tuple)


def plot(panels: Sequence[Axes], columns: int = 3, width: float = 4.6, height: float = 3.5) -> np.ndarray:
    """Draw panels in rows of at most `columns`; uint8 [h, w, 3]."""
    return grid(panels, draw, columns, width, height)


def grid(
    panels: Sequence[Panel], draw: Callable[[Any, Panel], None], columns: int, width: float, height: float
) -> np.ndarray:
    """Panels in rows of at most `columns`, each drawn by `draw(axes, panel)`; uint8 [h, w, 3].

    Args:
        width, height: of a panel, in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        draw(figure.add_subplot(rows, columns, i + 1), panel)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(axes: Any, panel: Axes) -> None:
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    axes.title.set_fontsize(10)
    if panel.log_x:
        axes.set_xscale("log", base=2)
    if panel.log_y:
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    if panel.ticks:
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.minorticks_off()
    if panel.names:
        axes.set_xticks(range(len(panel.names)), panel.names)
    for line in panel.lines:
        draw_line(axes, line)
    draw_targets(axes, panel)
    if panel.floor is not None:
        axes.set_ylim(bottom=panel.floor)
    for x, y, text in panel.notes:
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if not panel.ticks and not panel.names and not panel.log_x and whole(panel):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if any(line.label for line in panel.lines) or panel.targets or panel.band:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def whole(panel: Axes) -> bool:
    """Whether x counts things: all of it integers."""
    return all(np.issubdtype(np.asarray(line.x).dtype, np.integer) for line in panel.lines)


def draw_line(axes: Any, line: Line) -> None:
    look = {"color": line.colour, "label": line.label or None}
    if line.style == "steps":
        axes.stairs(line.y, line.x, linewidth=1.6, **look)
    elif line.style == "bars":
        axes.stairs(line.y, line.x, fill=True, alpha=0.45, **look)
    elif line.style == "dots":
        axes.plot(line.x, line.y, ".", markersize=3, alpha=0.5, **look)
    else:
        mark = {"marker": "" if line.style == "curve" else "o", "linestyle": "none" if line.style == "points" else "-"}
        axes.errorbar(
            line.x, line.y, yerr=line.error, capsize=2, linewidth=1.4, elinewidth=0.9, markersize=4, **mark, **look
        )


def draw_targets(axes: Any, panel: Axes) -> None:
    for i, target in enumerate(panel.targets):
        axes.axhline(target, color=TARGET, linestyle="--", linewidth=1.2, label=None if i else "target")
    if panel.band:
        axes.axhspan(*panel.band, color=TARGET, alpha=0.08)
        for i, edge in enumerate(panel.band):
            axes.axhline(edge, color=TARGET, linestyle="--", linewidth=1.2, label=None if i else "target range")
    if panel.diagonal:
        high = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.set(xlim=(0, high), ylim=(0, high))
        axes.plot([0, high], [0, high], color=TARGET, linestyle="--", linewidth=1.2, label="perfect")
