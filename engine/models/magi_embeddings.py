"""What MAGI-1's denoiser embeds: times and step sizes, prompts, and positions as turns of queries and keys.

All of it is float32, whatever the model's precision, and parameters have the checkpoints' names.

Legend: N worlds, c chunks in flight, F latent frames, S tokens of a frame, D width, C condition's width, T tokens of a
prompt, d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engine.models.seam import WHOLE, Seam
from engine.published import MagiSpec


class Rotary:
    """Turns queries and keys of one pass in float32: the first half of the turning channels with the second.

    Args:
        angles: [N, F S, 3 bands]; a head's first 6 bands channels turn, the others stay.
    """

    def __init__(self, angles: Tensor):
        self.cos, self.sin = (x.float().unsqueeze(2) for x in (angles.cos(), angles.sin()))

    def __call__(self, x: Tensor) -> Tensor:
        """[N, F S, heads, d] float32 -> the same."""
        half = self.cos.shape[-1]
        a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos, rest], dim=-1)


class TimeEmbedding(nn.Module):
    """Times, or step sizes -> vectors [..., C]."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.frequencies, width = spec.frequencies, spec.condition_width
        self.mlp = nn.Sequential(nn.Linear(spec.frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The sinusoid is rounded to the model's precision before the float32 products, as published."""
        return self.mlp(sinusoid(values, self.frequencies).to(dtype).float())


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Features float32 [..., width] of times in [0, 1] and of step sizes: cosines, then sines.

    In float32 and in this order, (value * frequency) * 1000, as published: step sizes give angles of up to 64,000, of
    which the rounding is seen.
    """
    powers = -math.log(10_000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2)
    rates = powers.double().exp().float()  # float32's own exp differs in the last bit between processors
    angles = values.float()[..., None] * rates.to(values.device) * 1000
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PromptEmbedding(nn.Module):
    """Prompts' embeddings -> what cross-attention reads; the vector of a prompt that is there, or dropped."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.null_caption_embedding = nn.Parameter(torch.randn(spec.text_tokens, spec.text_width) * 0.02)
        self.y_proj_xattn = nn.Sequential(nn.Linear(spec.text_width, spec.width), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(spec.text_width, spec.condition_width))

    def forward(self, text: Tensor) -> Tensor:
        """[1, T, text_width] -> float32 [1, T, D]."""
        return self.y_proj_xattn(text.to(self.null_caption_embedding))

    def dropped(self, flags: Tensor) -> Tensor:
        """[N, c] bool -> [N, c, C]. It knows of a prompt only whether it was dropped."""
        there, gone = self.y_proj_adaln(self.null_caption_embedding[None, -2:])[0]
        return torch.where(flags[..., None], gone, there)


class Rope(nn.Module):
    """Learned frequencies, the same for time, rows and columns."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.bands = nn.Parameter(10_000.0 ** -(torch.arange(spec.bands) / spec.bands))

    def forward(self, positions: Tensor, grid: tuple[int, int], seam: Seam = WHOLE) -> Rotary:
        """Of latent frames at integer positions [N, F] on a grid of (rows, columns)."""
        angles = grid_angles(positions, grid, self.bands).unflatten(1, (positions.shape[1], -1))
        return Rotary(seam.cut(angles, 2).flatten(1, 2))


def grid_angles(positions: Tensor, grid: tuple[int, int], bands: Tensor) -> Tensor:
    """Angles float64 [N, F S, 3 bands]: time, rows, columns.

    Rows and columns are counted from the middle, and scaled as if the grid had the area of 16 x 16.
    """
    scale = math.sqrt(grid[0] * grid[1] / 256)
    rows, columns = (centred(size, scale, positions.device) for size in grid)
    axes = (positions.double()[:, :, None, None], rows[:, None], columns)
    shape = (*positions.shape, *grid, len(bands))
    parts = [(axis[..., None] * bands.double()).expand(shape) for axis in axes]
    return torch.cat(parts, dim=-1).flatten(1, 3)


def centred(size: int, scale: float, device: torch.device) -> Tensor:
    """Coordinates float64 of `size` tokens in a row, from -(size / scale - 1) / 2 to as much above zero."""
    places = torch.arange(size, device=device, dtype=torch.float64) - (size - 1) / 2
    return places * ((size / scale - 1) / max(1, size - 1))
