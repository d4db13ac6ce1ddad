"""Sheets: labelled rows of frames in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, TEXT = 78, 4, 13
PAPER, INK = (255, 255, 255), (30, 30, 30)


def sheet(
    rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], width: int = 96, pairs: bool = False
) -> np.ndarray:
    """Lay out frames as one picture, uint8 [h, w, 3].

    Args:
        rows: a label, and frames uint8 [M, H, W, 3], for each; all of the same M and size.
        columns: M labels.
        width: pixels that a frame is drawn wide, at least; frames are enlarged by whole factors.
        pairs: set every two rows apart from the next two.
    """
    count, *size, _ = rows[0][1].shape
    scale = -(-width // size[1])
    height, width = size[0] * scale, size[1] * scale
    tops = [TEXT + 8 + i * (height + GAP) + (i // 2 * 3 * GAP if pairs else 0) for i in range(len(rows))]
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
