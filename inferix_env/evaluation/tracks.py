"""Tracks: what is kept of a run, frame by frame, when the frames themselves are too many to keep.

A track is asked how it fares over ages and in windows. Knows frames and metrics; knows nothing of worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferix_env.evaluation import metrics


@dataclass(frozen=True)
class Track:
    """Numbers of the frames at ages 1 to T of one run (age: steps since its reset).

    Attributes:
        fire: fire pixels [T].
        sharpness: mean absolute Laplacian [T].
        change: mean absolute difference to the frame before [T], grey levels.
        saturated: share of saturated pixels [T].
        colours: histograms [T, 3, 16].
    """

    fire: np.ndarray
    sharpness: np.ndarray
    change: np.ndarray
    saturated: np.ndarray
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.fire)


def look(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, ...]:
    """A track's numbers, in its order, of frames `after` uint8 [N, H, W, 3] and those `before` them."""
    return (
        metrics.fire_pixels(after),
        metrics.sharpness(after),
        metrics.temporal_change(before, after),
        metrics.saturated(after),
        metrics.colour_histogram(after),
    )


def track(frames: np.ndarray) -> Track:
    """The track of one run whose frames uint8 [T + 1, H, W, 3] begin with the reset."""
    return Track(*look(frames[:-1], frames[1:]))


def grid(tracks: Sequence[Track], name: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """A number at the ages [low, high) that any track reaches, and which tracks reach them, both float64 [N, ages]."""
    spans = [getattr(t, name)[max(low, 1) - 1 : high - 1] for t in tracks]
    values = np.zeros((len(spans), max((len(span) for span in spans), default=0)))
    present = np.zeros_like(values)
    for i, span in enumerate(spans):
        values[i, : len(span)], present[i, : len(span)] = span, 1
    return values, present


def weigh(values: np.ndarray, present: np.ndarray, weights: np.ndarray, even: bool) -> np.ndarray:
    """Means [D] of a grid under D weights of its tracks, float64 [D, N]; NaN where nothing is present."""
    sums, counts = weights @ values, weights @ present
    if not even:
        sums, counts = sums.sum(1, keepdims=True), counts.sum(1, keepdims=True)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.array([row[~np.isnan(row)].mean() if not np.isnan(row).all() else np.nan for row in means])


def mean_at(tracks: Sequence[Track], name: str, low: int, high: int, even: bool = False) -> float:
    """Mean of a number over the ages [low, high) of all tracks; NaN where none is that old.

    Args:
        even: count every age the same, however many tracks reach it.
    """
    values, present = grid(tracks, name, low, high)
    return float(weigh(values, present, np.ones((1, len(values))), even)[0])


def spread(
    tracks: Sequence[Track], name: str, low: int, high: int, rng: np.random.Generator, even: bool = False
) -> float:
    """Standard error of `mean_at`, by drawing as many tracks again 200 times; NaN for fewer than two."""
    values, present = grid([t for t in tracks if len(t) >= max(low, 1)], name, low, high)
    if len(values) < 2:
        return float("nan")
    weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=200).astype(np.float64)
    return float(np.std(weigh(values, present, weights, even)))


@dataclass(frozen=True)
class Windows:
    """Stretches of `length` steps of some tracks, each a row [W].

    Attributes:
        age: of its first frame.
        change, saturated: means over the window.
        distance: of the window's mean colour histogram from `reference`.
    """

    age: np.ndarray
    change: np.ndarray
    saturated: np.ndarray
    distance: np.ndarray


def windows(tracks: Sequence[Track], length: int, reference: np.ndarray) -> Windows:
    """Whole windows of all tracks, in order; `reference` is a colour histogram [3, 16].

    Raises:
        ValueError: no track is as long as a window.
    """
    places = [(t, i) for t in tracks for i in range(0, len(t) - length + 1, length)]
    if not places:
        raise ValueError(f"no run lasts {length} steps")
    colours = np.stack([t.colours[i : i + length].mean(0) for t, i in places])
    return Windows(
        age=np.array([i + 1 for _, i in places]),
        change=np.array([t.change[i : i + length].mean() for t, i in places]),
        saturated=np.array([t.saturated[i : i + length].mean() for t, i in places]),
        distance=metrics.histogram_distance(colours, reference),
    )
