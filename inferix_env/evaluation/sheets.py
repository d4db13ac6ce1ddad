"""Sheets: labelled rows of frames in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, TEXT = 78, 4, 13
PAPER, INK = (255, 255, 255), (30, 30, 30)


def sheet(
    rows: Sequence[tuple[str, np.ndarray]],
    columns: Sequence[str],
    width: int = 96,
    pairs: bool = False,
    together: int = 0,
) -> np.ndarray:
    """Lay out frames as one picture, uint8 [h, w, 3].

    Args:
        rows: a label, and frames uint8 [M, H, W, 3], for each; all of the same M and size.
        columns: M labels.
        width: pixels that a frame is drawn wide, at least; frames are enlarged by whole factors.
        pairs: set every two rows apart from the next two.
        together: set so many rows apart from the next ones, in place of two.
    """
    apart = together or (2 if pairs else 0)
    count, *size, _ = rows[0][1].shape
    scale = -(-width // size[1])
    height, width = size[0] * scale, size[1] * scale
    tops = [TEXT + 8 + i * (height + GAP) + (i // apart * 3 * GAP if apart else 0) for i in range(len(rows))]
    canvas = Image.new("RGB", (MARGIN + count * (width + GAP), tops[-1] + height + GAP), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    for i, label in enumerate(columns):
        pen.text((MARGIN + i * (width + GAP) + width // 2, 3), label, fill=INK, font=font, anchor="ma")
    for (label, frames), top in zip(rows, tops, strict=True):
        pen.multiline_text((MARGIN - 8, top + height // 2), label, fill=INK, font=font, anchor="rm", align="right")
        for i, frame in enumerate(frames):
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (MARGIN + i * (width + GAP), top))
    return np.asarray(canvas)


def abreast(parts: Sequence[tuple[str, np.ndarray]], scale: int = 2) -> np.ndarray:
    """Clips side by side under their labels, uint8 [T, h, w, 3], both sides even.

    Args:
        parts: a label, and frames uint8 [T, H, W, 3], for each; all of the same T and size.
        scale: pixels that a pixel of the frames is drawn wide.
    """
    big = [frames.repeat(scale, axis=1).repeat(scale, axis=2) for _, frames in parts]
    count, height, width, _ = big[0].shape
    top = np.asarray(headed([label for label, _ in parts], width))
    out = np.full((count, top.shape[0] + height, top.shape[1], 3), 255, np.uint8)
    out[:, : top.shape[0]] = top
    for i, frames in enumerate(big):
        out[:, top.shape[0] :, i * (width + GAP) : i * (width + GAP) + width] = frames
    return out[:, : out.shape[1] // 2 * 2, : out.shape[2] // 2 * 2]


def headed(labels: Sequence[str], width: int) -> Image.Image:
    """A strip of labels, each above the middle of a frame so many pixels wide."""
    strip = Image.new("RGB", (len(labels) * (width + GAP) - GAP, TEXT + 7), PAPER)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(TEXT)
    for i, label in enumerate(labels):
        pen.text((i * (width + GAP) + width // 2, 2), label, fill=INK, font=font, anchor="ma")
    return strip
