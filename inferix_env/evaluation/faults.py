"""Faults of a long dream: windows in which it freezes, boils, saturates or collapses, by what reality never does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferix_env.evaluation.plots import DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.tracks import Track, Windows, windows

WORSE = 2.0  # a window is faulty where it is this many times beyond all that reality shows


@dataclass(frozen=True)
class Faults:
    """Bounds of a sound window, taken from reality; all dreamed windows; the ages of the faulty ones, by fault."""

    bounds: dict[str, float]
    real: Windows
    dream: Windows
    ages: dict[str, list[int]]


def find_faults(real: Sequence[Track], dreamed: Sequence[Track], length: int) -> Faults:
    """Compare dreamed windows of `length` steps with the furthest that real ones go."""
    reference = np.concatenate([t.colours for t in real]).mean(0)
    truth, made = (windows(tracks, length, reference) for tracks in (real, dreamed))
    bounds = {
        "lowest": float(truth.change.min() / WORSE),
        "highest": float(truth.change.max() * WORSE),
        "saturated": float(truth.saturated.max() * WORSE),
        "distance": float(truth.distance.max() * WORSE),
    }
    faulty = {
        "frozen": made.change < bounds["lowest"],
        "boiling": made.change > bounds["highest"],
        "saturated": made.saturated > bounds["saturated"],
        "collapsed": made.distance > bounds["distance"],
    }
    return Faults(bounds, truth, made, {name: made.age[mask].tolist() for name, mask in faulty.items()})


def draw_windows(faults: Faults) -> np.ndarray:
    def cloud(name: str) -> list[Line]:
        made, truth = faults.dream, faults.real
        return [
            Line("dream", made.age, getattr(made, name), DREAM, "dots"),
            Line("reality", truth.age, getattr(truth, name), REAL, "dots"),
        ]

    b, x = faults.bounds, "age of the window, steps"
    change = Axes("Change", x, "change a step, grey levels", cloud("change"), (b["lowest"], b["highest"]), log_y=True)
    colours = Axes("Colours", x, "distance of histograms", cloud("distance"), (b["distance"],), floor=0)
    burnt = Axes("Saturation", x, "share of pixels", cloud("saturated"), (b["saturated"],), floor=0)
    return plot([change, colours, burnt])
