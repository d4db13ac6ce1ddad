"""SSIM: structural similarity of two frames (Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, 2004).

On luma (BT.601) of 8-bit frames, with the paper's constants: an 11 x 11 Gaussian window of standard deviation 1.5,
K1 = 0.01, K2 = 0.03, L = 255; the mean over all places where the window lies inside the frame.
"""

from __future__ import annotations

import numpy as np

SIDE, SPREAD = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = np.array([0.299, 0.587, 0.114])


def window() -> np.ndarray:
    """The Gaussian along one axis, summing to one, [SIDE]."""
    x = np.arange(SIDE) - SIDE // 2
    weights = np.exp(-(x**2) / (2 * SPREAD**2))
    return weights / weights.sum()


def smooth(pictures: np.ndarray) -> np.ndarray:
    """Pictures [..., H, W] through the window, [..., H - 10, W - 10]."""
    for axis in (-2, -1):
        count = pictures.shape[axis] - SIDE + 1
        parts = (w * np.take(pictures, range(i, i + count), axis=axis) for i, w in enumerate(window()))
        pictures = sum(parts)
    return pictures


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of frames uint8 [..., H, W, 3], float64 [...]: 1 for the same, down to -1.

    Raises:
        ValueError: the shapes differ, or a side is below 11 pixels.
    """
    if a.shape != b.shape or min(a.shape[-3:-1]) < SIDE:
        raise ValueError(f"frames {list(a.shape)} and {list(b.shape)}: expected one shape, sides of at least {SIDE}")
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (a, b))
    return np.array([one(x @ LUMA, y @ LUMA) for x, y in zip(*flat, strict=True)]).reshape(a.shape[:-3])


def one(x: np.ndarray, y: np.ndarray) -> float:
    """Structural similarity of two pictures [H, W]."""
    mean_x, mean_y, square_x, square_y, product = smooth(np.stack([x, y, x * x, y * y, x * y]))
    spread_x, spread_y, together = square_x - mean_x**2, square_y - mean_y**2, product - mean_x * mean_y
    above = (2 * mean_x * mean_y + C1) * (2 * together + C2)
    below = (mean_x**2 + mean_y**2 + C1) * (spread_x + spread_y + C2)
    return float((above / below).mean())
