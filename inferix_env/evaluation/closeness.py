"""Closeness over the horizon: how like reality the h-th dreamed frame is, beside baselines that know less or more.

Kinds of frames: "dream"; "repeat last frame"; "wrong actions" (the world under another episode's); "codec" (the real
frame itself, encoded and decoded: what no dream can pass). Knows frames; knows no world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from inferix_env.evaluation import metrics
from inferix_env.evaluation.measures import Better, Measure, measure
from inferix_env.evaluation.plots import COLOURS, DREAM, REAL, TARGET, Axes, Line
from inferix_env.evaluation.ssim import ssim
from inferix_env.evaluation.stretches import Stretch

KINDS = {"dream": DREAM, "wrong actions": TARGET, "repeat last frame": REAL, "codec": COLOURS[2]}
Frames = Mapping[str, Sequence[np.ndarray]]
"""Of each kind, for each stretch, uint8 [S, H, W, 3]."""
Pairwise = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(real, made) frames uint8 [N, H, W, 3] -> a number for each pair [N]."""


def repeated(stretch: Stretch) -> np.ndarray:
    """The last real frame before a stretch, once for each of its frames."""
    return np.broadcast_to(stretch.start.frames[-1], stretch.frames.shape)


def relative_sharpness(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Mean absolute Laplacian over reality's; NaN where reality is flat."""
    ours, theirs = metrics.sharpness(made), metrics.sharpness(real)
    return np.divide(ours, theirs, out=np.full_like(ours, np.nan), where=theirs > 0)


# What is measured of pairs of frames: its name, unit, which way is better, its statistic, and the function.
PAIRWISE: list[tuple[str, str, Better, str, Pairwise]] = [
    ("PSNR", "dB", "higher", "psnr", metrics.squared_error),
    ("SSIM", "", "higher", "mean", ssim),
    ("sharpness over reality's", "", "one", "mean", relative_sharpness),
]


def measures_of(
    stretches: Sequence[Stretch],
    frames: Frames,
    horizons: Sequence[int],
    pairwise: Sequence[tuple[str, str, Better, str, Pairwise]] = PAIRWISE,
) -> list[Measure]:
    """Every measure of every kind at every horizon that some stretch reaches."""
    made: list[Measure] = []
    for name, unit, better, statistic, compare in pairwise:
        for kind, runs in frames.items():
            for h in horizons:
                samples = at_horizon(stretches, runs, h, compare)
                if samples:
                    merit = better if kind == "dream" else ""
                    made.append(measure(name, kind, samples, h, unit, merit, statistic))
    return made


def at_horizon(
    stretches: Sequence[Stretch], runs: Sequence[np.ndarray], horizon: int, compare: Pairwise
) -> dict[str, float]:
    """A number for each stretch that lasts so long, by its name."""
    pairs = [(s, run) for s, run in zip(stretches, runs, strict=True) if len(s) >= horizon]
    if not pairs:
        return {}
    real, made = (np.stack(x) for x in ([s.frames[horizon - 1] for s, _ in pairs], [r[horizon - 1] for _, r in pairs]))
    return {s.name: float(x) for (s, _), x in zip(pairs, compare(real, made), strict=True)}


def curve(measures: Sequence[Measure], name: str, y: str = "", **options: object) -> Axes:
    """A panel of a measure's curves, a line for each kind, with its intervals."""
    chosen = [m for m in measures if m.name == name and m.at is not None and m.value is not None]
    kinds = dict.fromkeys(m.of for m in chosen)
    ticks = sorted({m.at for m in chosen if m.at is not None})
    lines = [line_of([m for m in chosen if m.of == kind], kind, KINDS.get(kind, COLOURS[1])) for kind in kinds]
    unit = next((f", {m.unit}" for m in chosen if m.unit), "")
    given = {"log_x": True, "ticks": ticks, **options}
    return Axes(name, "steps dreamed", y or f"{name}{unit}", lines, **given)  # type: ignore[arg-type]


def line_of(points: Sequence[Measure], label: str, colour: str) -> Line:
    y = np.array([m.value for m in points], np.float64)
    low = np.array([m.value if m.low is None else m.low for m in points], np.float64)
    high = np.array([m.value if m.high is None else m.high for m in points], np.float64)
    error = np.maximum(np.stack([y - low, high - y]), 0)
    return Line(label, [m.at or 0 for m in points], y, colour, error=error)
