"""Frames as vision models take them: resized, cropped and normalised as VBench does it.

Shape letters: T frames, H W pixels. Resizing is without antialiasing, as there. Knows tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tensor_of(frames: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 [T, H, W, 3] -> [T, 3, H, W] in 0..255, float32."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float()


def resize_shorter(pixels: Tensor, side: int, mode: str) -> Tensor:
    """The shorter side of [T, C, H, W] becomes `side`, the longer one in proportion, rounded down."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short == side:
        return pixels
    size = (side, side * width // short) if height <= width else (side * height // short, side)
    return F.interpolate(pixels, size=size, mode=mode, align_corners=False)


def limit_longer(pixels: Tensor, side: int) -> Tensor:
    """The longer side of [T, C, H, W] becomes `side` where it is more."""
    height, width = pixels.shape[-2:]
    if max(height, width) <= side:
        return pixels
    scale = side / max(height, width)
    size = (int(height * scale), int(width * scale))
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)


def crop_middle(pixels: Tensor, side: int) -> Tensor:
    """The middle `side` x `side` of [T, C, H, W]."""
    top, left = (round((size - side) / 2) for size in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def standardised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[T, 3, H, W] in 0..255 -> less the mean, over the spread, channel by channel, of 0..1."""
    mean_c, std_c = (torch.tensor(x, device=pixels.device)[:, None, None] for x in (mean, std))
    return (pixels / 255 - mean_c) / std_c


def pad_to_multiple(pixels: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, slice]]:
    """Repeat the edges until both sides are multiples; returns with it where the picture lies in that."""
    height, width = pixels.shape[-2:]
    down, right = -height % multiple, -width % multiple
    top, left = down // 2, right // 2
    padded = F.pad(pixels, (left, right - left, top, down - top), mode="replicate")
    return padded, (slice(top, top + height), slice(left, left + width))
