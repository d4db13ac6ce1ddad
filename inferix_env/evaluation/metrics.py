"""Numbers off frames, scores and labels: closed forms in numpy.

Frames are uint8 [..., H, W, 3] and a metric that is asked of each frame returns [...]. Knows nothing of worlds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CHUNK = 64  # frames looked at in one go: what bounds the memory of the sums
BINS = 16  # of a colour histogram


def each_frame(measure: Callable[[np.ndarray], np.ndarray], frames: np.ndarray) -> np.ndarray:
    """Ask `measure` ([B, H, W, 3] -> [B, ...]) of all frames, a chunk at a time."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    parts = [measure(flat[i : i + CHUNK]) for i in range(0, len(flat), CHUNK)]
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return joined.reshape((*frames.shape[:-3], *joined.shape[1:]))


def squared_error(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame, in squared grey levels (0 to 255), float64 [...].

    Raises:
        ValueError: the shapes differ.
    """
    if real.shape != made.shape:
        raise ValueError(f"frames {list(real.shape)} and {list(made.shape)}: expected the same shape")
    both = np.stack([real, made], axis=-4).reshape(-1, 2, *real.shape[-3:])
    errors = [np.square(np.subtract(a, b, dtype=np.float32)).mean(dtype=np.float64) for a, b in both]
    return np.array(errors).reshape(real.shape[:-3])


def psnr_of(error: float) -> float:
    """Peak signal-to-noise ratio, dB, of a mean squared error; infinite for none."""
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def psnr(real: np.ndarray, made: np.ndarray) -> float:
    """PSNR, dB, of the error pooled over all frames."""
    return psnr_of(float(squared_error(real, made).mean()))


def psnr_gain(real: np.ndarray, made: np.ndarray, baseline: np.ndarray) -> float:
    """How many dB `made` is closer to `real` than `baseline` is, errors pooled; infinite where it is `real` itself."""
    return psnr(real, made) - psnr(real, baseline)


def sharpness(frames: np.ndarray) -> np.ndarray:
    """Mean absolute Laplacian (four neighbours, each channel, inner pixels) of each frame, float64 [...]."""

    def measure(chunk: np.ndarray) -> np.ndarray:
        x = chunk.astype(np.int16)
        around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
        return np.abs(4 * x[:, 1:-1, 1:-1] - around).mean((1, 2, 3))

    return each_frame(measure, frames)


def fire_mask(frames: np.ndarray) -> np.ndarray:
    """Where fire glows in Doom's palette: R > 190, G > 160 and B < 170, bool [..., H, W]."""
    return (frames[..., 0] > 190) & (frames[..., 1] > 160) & (frames[..., 2] < 170)


def fire_pixels(frames: np.ndarray) -> np.ndarray:
    """Pixels of fire in each frame, int64 [...]."""
    return fire_mask(frames).sum((-2, -1))


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """True wherever a True lies within `radius` pixels along both axes, bool [..., H, W]."""
    for axis in (-2, -1):
        size = mask.shape[axis]
        grown = mask.copy()
        for step in range(1, min(radius, size - 1) + 1):
            low = [slice(None)] * mask.ndim
            high = [slice(None)] * mask.ndim
            low[axis], high[axis] = slice(0, size - step), slice(step, size)
            grown[tuple(high)] |= mask[tuple(low)]
            grown[tuple(low)] |= mask[tuple(high)]
        mask = grown
    return mask


def recall(real: np.ndarray, made: np.ndarray, tolerance: int = 0) -> float:
    """Share of real's True pixels with one of made's within `tolerance` pixels; NaN where real has none.

    The other way round it is precision.
    """
    count = real.sum()
    return float((real & dilate(made, tolerance)).sum() / count) if count else float("nan")


def largest_blob(mask: np.ndarray) -> np.ndarray:
    """The largest group of True pixels that touch along sides or corners, bool [H, W]; all False where none is True."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    best: list[tuple[int, int]] = []
    while left:
        blob = [left.pop()]
        for y, x in blob:  # grows while it is walked
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            blob += near
        best = max(best, blob, key=len)
    out = np.zeros(mask.shape, bool)
    if best:
        out[tuple(np.array(best).T)] = True
    return out


def temporal_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two frames, in grey levels, float64 [...]."""
    return (np.maximum(before, after) - np.minimum(before, after)).mean((-3, -2, -1))  # uint8 cannot go below zero


def saturated(frames: np.ndarray) -> np.ndarray:
    """Share of pixels with a channel at 2 or less, or at 253 or more, in each frame, float64 [...].

    Black (all three at 2 or less) does not count: games are full of it.
    """
    red, green, blue = np.moveaxis(frames, -1, 0)
    lowest = np.minimum(np.minimum(red, green), blue)
    highest = np.maximum(np.maximum(red, green), blue)
    return (((lowest <= 2) | (highest >= 253)) & (highest > 2)).mean((-2, -1))


def colour_histogram(frames: np.ndarray) -> np.ndarray:
    """Share of pixels in each of 16 levels of each channel, float64 [..., 3, 16]."""
    width = 256 // BINS

    def measure(chunk: np.ndarray) -> np.ndarray:
        places = chunk // width + np.arange(3) * BINS + (np.arange(len(chunk)) * 3 * BINS)[:, None, None, None]
        counts = np.bincount(places.ravel(), minlength=len(chunk) * 3 * BINS)
        return counts.reshape(len(chunk), 3, BINS) / (chunk.shape[1] * chunk.shape[2])

    return each_frame(measure, frames)


def histogram_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation of two histograms [..., 3, 16], mean over channels: 0 the same, 1 nothing in common."""
    return np.abs(a - b).sum(-1).mean(-1) / 2


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall curve, one point a distinct score; NaN where no label is positive.

    Equal scores all count at once, so a constant score has the base rate as its average precision.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    last = np.append(np.nonzero(np.diff(ranked))[0], len(ranked) - 1)  # the last row of each distinct score
    if not len(ranked) or not hits[-1]:
        return float("nan")
    precision = hits[last] / (last + 1)
    gained = np.diff(hits[last], prepend=0) / hits[-1]
    return float((precision * gained).sum())


def reliability(scores: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> list[dict[str, float]]:
    """For each bin between `edges` (the last closed) that holds scores: their mean, how often labels were 1, count."""
    which = np.clip(np.searchsorted(edges, scores, "right") - 1, 0, len(edges) - 2)
    rows = []
    for i in range(len(edges) - 1):
        inside = which == i
        if inside.any():
            row = {"predicted": float(scores[inside].mean()), "observed": float(labels[inside].mean())}
            rows.append({"low": float(edges[i]), "high": float(edges[i + 1]), **row, "count": int(inside.sum())})
    return rows


def accuracy(labels: np.ndarray, guesses: np.ndarray) -> float:
    """Share of guesses that are right."""
    return float((labels == guesses).mean())


def balanced_accuracy(labels: np.ndarray, guesses: np.ndarray) -> float:
    """Mean over the classes among `labels` of the share of each that was guessed right: chance is one over them."""
    return float(np.mean([(guesses[labels == c] == c).mean() for c in np.unique(labels)]))
