"""How frames look, without weights: spectral sharpness, colourfulness, colours and structure of regions.

Frames are uint8 [T, H, W, 3]; a look returns a number or a row for each.
"""

from __future__ import annotations

import numpy as np

from inferix_env.evaluation.scorers.flow import shrunk

SIDE, LEVELS, DIRECTIONS, CELLS = 96, 8, 8, 2


def spectral_sharpness(frames: np.ndarray) -> np.ndarray:
    """The root-mean-square spatial frequency of each frame's luma, cycles a pixel from 0 to 0.71 [T].

    A window (Hann) hides the edges of the picture. Flat frames have 0.
    """
    luma = frames @ np.array([0.299, 0.587, 0.114])
    height, width = luma.shape[1:]
    luma -= luma.mean((1, 2), keepdims=True)
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    power = np.square(np.abs(np.fft.rfft2(luma * window)))
    squared = np.square(np.fft.fftfreq(height)[:, None]) + np.square(np.fft.rfftfreq(width)[None])
    total = power.sum((1, 2))
    return np.sqrt(np.divide((power * squared).sum((1, 2)), total, out=np.zeros_like(total), where=total > 1e-6))


def colourfulness(frames: np.ndarray) -> np.ndarray:
    """Colourfulness of each frame (the measure M3 of Hasler and Süsstrunk 2003), in grey levels [T]: 0 is grey."""
    red, green, blue = np.moveaxis(frames.astype(np.float32), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(np.square(opponents.std((-2, -1), dtype=np.float64)).sum(0))
    offset = np.sqrt(np.square(opponents.mean((-2, -1), dtype=np.float64)).sum(0))
    return spread + 0.3 * offset


def subject(frames: np.ndarray) -> np.ndarray:
    """Colours and structure of the middle half of each frame's height and width, [T, D]; see `describe`."""
    small = shrunk(frames, SIDE).numpy()
    height, width = small.shape[-2:]
    top, left = height // 4, width // 4
    return describe(small[..., top : height - top, left : width - left])


def background(frames: np.ndarray) -> np.ndarray:
    """Colours and structure of the frame around that middle, [T, D]; see `describe`."""
    small = shrunk(frames, SIDE).numpy()
    height, width = small.shape[-2:]
    top, left = max(1, height // 4), max(1, width // 4)
    bands = small[..., :top, :], small[..., height - top :, :]
    sides = small[..., top : height - top, :left], small[..., top : height - top, width - left :]
    return np.concatenate([describe(part) for part in (*bands, *sides) if part.size], axis=-1)


def describe(pictures: np.ndarray) -> np.ndarray:
    """Square roots of histograms of pictures [T, 3, h, w] in 0..1: of each colour, and of the edges' directions.

    They are taken in 2 x 2 cells. The cosine of two rows is the mean Bhattacharyya coefficient of their histograms:
    1 the same, 0 nothing in common.
    """
    cells = [cell for row in np.array_split(pictures, CELLS, axis=-2) for cell in np.array_split(row, CELLS, axis=-1)]
    rows = [part for cell in cells if cell.size for part in (*colours(cell), directions(cell))]
    return np.sqrt(np.concatenate(rows, axis=-1))


def colours(pictures: np.ndarray) -> list[np.ndarray]:
    """For each channel of [T, 3, h, w] the share of pixels at 8 levels [T, 8], each pixel shared by the nearest two."""
    place = pictures.reshape(*pictures.shape[:2], -1) * (LEVELS - 1)
    return [shares(place[:, c], np.ones_like(place[:, c]), LEVELS, wrap=False) for c in range(3)]


def directions(pictures: np.ndarray) -> np.ndarray:
    """The share of edge strength in 8 directions [T, 8]; even where there is none."""
    luma = pictures.mean(1)
    if min(luma.shape[-2:]) < 2:
        return np.full((len(luma), DIRECTIONS), 1 / DIRECTIONS)
    dy, dx = np.gradient(luma, axis=(-2, -1))
    angle = np.mod(np.arctan2(dy, dx), np.pi) * (DIRECTIONS / np.pi)
    flat = (len(luma), -1)
    return shares(angle.reshape(flat), np.hypot(dx, dy).reshape(flat), DIRECTIONS, wrap=True)


def shares(place: np.ndarray, weight: np.ndarray, count: int, wrap: bool) -> np.ndarray:
    """Histograms [T, count] of places [T, P] in 0..count by weight, shared between neighbouring bins; rows sum to 1."""
    low = np.floor(place)
    part = place - low
    first = low.astype(np.int64)
    second = (first + 1) % count if wrap else np.minimum(first + 1, count - 1)
    first = first % count if wrap else np.minimum(first, count - 1)
    rows = np.arange(len(place))[:, None] * count
    total = np.zeros(len(place) * count)
    for bins, amount in ((first, weight * (1 - part)), (second, weight * part)):
        total += np.bincount((rows + bins).ravel(), weights=amount.ravel(), minlength=len(total))
    histogram = total.reshape(len(place), count) + 1e-6
    return histogram / histogram.sum(-1, keepdims=True)
