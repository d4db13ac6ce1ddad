"""Video in the layouts that codecs take: as frames of pixels, as one volume, as pictures one by one.

Shapes: N worlds, C channels, T frames, H W their size.
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn


def to_frames(video: Tensor) -> Tensor:
    """[..., 3, H, W] in [-1, 1] -> uint8 [..., H, W, 3]."""
    pixels = ((video.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous()


def all_frames(video: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """`to_frames` of worlds of one age, or of each in a list."""
    return to_frames(video) if isinstance(video, Tensor) else [to_frames(x) for x in video]


def enlarge(x: Tensor, times: int) -> Tensor:
    """[N, times * C, T, H, W] -> [(N T times), C, 2H, 2W]: frames interleaved and enlarged in one copy."""
    y = repeat(x, "n (s c) t h w -> (n t s) (h a) (w b) c", s=times, a=2, b=2)
    return y.permute(0, 3, 1, 2)


def as_pictures(x: Tensor) -> Tensor:
    """[N, C, T, H, W] -> [(N T), C, H, W], a view where channels are last in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def as_video(x: Tensor, n: int) -> Tensor:
    """The way back from `as_pictures`."""
    return x.unflatten(0, (n, -1)).transpose(1, 2)


def channels_last(module: nn.Module) -> None:
    """Lay out the weights of convolutions as their inputs are, so that no call has to."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d | nn.Conv3d):
            layout = torch.channels_last if conv.weight.ndim == 4 else torch.channels_last_3d
            conv.weight.data = conv.weight.data.contiguous(memory_format=layout)
