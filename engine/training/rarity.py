"""How rare a colour is in a data set: a cheap, general sign of the small things that decide a game.

A fireball, a coin, a warning light: a pixel of a colour that few other pixels have. Knows frames; does not know
codecs, latents or losses.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.training.data import Shards


class ColourRarity(nn.Module):
    """How rare a pixel's colour is: 0 for the commonest of 16^3 colours, 1 from one pixel in 10,000 down."""

    def __init__(self, frames: np.ndarray):
        super().__init__()
        self.table: Tensor
        counts = np.bincount(bins(torch.from_numpy(frames)).ravel().numpy(), minlength=4096)
        surprise = -np.log10(np.maximum(counts / counts.sum(), 1e-4))
        table = (surprise - surprise.min()) / (4 - surprise.min())
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))

    @classmethod
    def of(cls, shards: Shards, count: int = 512) -> ColourRarity:
        """From `count` rows with pictures, spread evenly over a data set."""
        rows = np.nonzero(shards.column("valid"))[0]
        chosen = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
        return cls(np.concatenate([shards.frames(int(t), int(t) + 1) for t in chosen]))

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, 1, H, W] in [0, 1]."""
        return self.table[bins(frames)][:, None]

    def cells(self, frames: Tensor, scale: int) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, H/scale, W/scale] in [0, 1].

        The mean over a latent's pixels of the fourth power, which tells a few very rare pixels from many unusual ones.
        """
        return F.avg_pool2d(self(frames) ** 4, scale)[:, 0]


def bins(frames: Tensor) -> Tensor:
    r, g, b = (frames.long() >> 4).unbind(-1)
    return (r << 8) | (g << 4) | b
