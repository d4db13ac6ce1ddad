"""Tables of numbers as coloured cells. Knows matplotlib, and uses no global state of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferix_env.evaluation.plots import grid


@dataclass(frozen=True)
class Heat:
    """A table of numbers [rows, columns]; blue is below 0, red above, at full strength from `full` on.

    Attributes:
        marked: (row, column) of the cells to frame.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    full: float
    form: str = "{:+.1f}"
    marked: Sequence[tuple[int, int]] = ()


def draw_heats(heats: Sequence[Heat], columns: int = 2, width: float = 6.6, row_height: float = 0.42) -> np.ndarray:
    """Tables in rows of at most `columns`; uint8 [h, w, 3]."""
    return grid(heats, draw, columns, width, row_height * max(len(heat.rows) for heat in heats) + 1.3)


def draw(axes: Any, heat: Heat) -> None:
    shades = shade(heat.values / heat.full)
    axes.imshow(shades, cmap="RdBu_r", vmin=-1.25, vmax=1.25, aspect="auto")
    axes.set_title(heat.title, fontsize=10)
    axes.set_xticks(range(len(heat.columns)), heat.columns, fontsize=9)
    axes.set_yticks(range(len(heat.rows)), heat.rows, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(heat.values):
        ink = "white" if abs(shades[row, column]) > 0.7 else "#222222"
        axes.text(column, row, heat.form.format(value), ha="center", va="center", fontsize=8.5, color=ink)
    for row, column in heat.marked:
        frame = {"fill": False, "edgecolor": "#222222", "linewidth": 1.6}
        axes.add_patch(rectangle((column - 0.47, row - 0.46), 0.94, 0.92, **frame))


def shade(parts: np.ndarray) -> np.ndarray:
    """-1..1 of how far numbers are along, small ones spread out by a square root."""
    return np.sign(parts) * np.sqrt(np.minimum(np.abs(parts), 1))


def rectangle(corner: tuple[float, float], width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, **style)
