"""Contact sheets: many frames in one picture, for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_sheet(path: Path, frames: np.ndarray, columns: int, scale: int = 2) -> None:
    """Lay uint8 frames [B, H, W, 3] out in rows of `columns`, each pixel `scale` wide, and write a PNG."""
    count, height, width, _ = frames.shape
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + 2), columns * (width + 2), 3), np.uint8)
    for i, frame in enumerate(frames):
        y, x = i // columns * (height + 2), i % columns * (width + 2)
        canvas[y : y + height, x : x + width] = frame
    size = (canvas.shape[1] * scale, canvas.shape[0] * scale)
    Image.fromarray(canvas).resize(size, Image.Resampling.NEAREST).save(path)
