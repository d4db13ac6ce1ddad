"""AutoEncoder: a small convolutional codec, one latent frame a frame, 8x8 pixels a latent.

Norm-free residual blocks in the manner of TAESD (github.com/madebyollin/taesd), written for a CPU: the encoder
starts from 4x4 pixel patches and the decoder ends in 2x2 ones, so nothing runs at full resolution. Latents are
standardised per channel by statistics kept in the weights, so a denoiser always meets unit variance.

Each frame stands alone: the streaming state is None. Knows nothing of worlds.

Shapes: N batch, T frames, F latent frames (here F = T), C latent channels, H W pixels, h w = H/8, W/8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SCALE = 8


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), starting as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def stack(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(depth)))


class Encoder(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, int, int], depth: int):
        super().__init__()
        _, middle, deep = widths
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, middle, 3, padding=1),
            stack(middle, depth),
            nn.Conv2d(middle, deep, 3, stride=2, padding=1),
            stack(deep, depth),
            nn.Conv2d(deep, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, int, int], depth: int):
        super().__init__()
        shallow, middle, deep = widths
        self.layers = nn.Sequential(
            nn.Conv2d(channels, deep, 3, padding=1),
            stack(deep, depth),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(deep, middle, 3, padding=1),
            stack(middle, depth),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(middle, shallow, 3, padding=1),
            stack(shallow, depth),
            nn.Conv2d(shallow, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class AutoEncoder(nn.Module):
    """Frames uint8 [N, T, H, W, 3] <-> latents [N, T, C, H/8, W/8] of unit variance per channel.

    Args:
        channels: latent channels C.
        widths: channels at 1/2, 1/4 and 1/8 of the frame's size.
        depth: residual blocks at each size.
    """

    frames_per_latent = 1
    mean: Tensor
    std: Tensor

    def __init__(self, channels: int = 16, widths: tuple[int, int, int] = (48, 64, 128), depth: int = 2):
        super().__init__()
        self.encoder = Encoder(channels, widths, depth)
        self.decoder = Decoder(channels, widths, depth)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def encode(self, frames: Tensor, states: list | None = None) -> tuple[Tensor, None]:
        """uint8 [N, T, H, W, 3] -> standardised latents [N, T, C, h, w] and the (empty) streaming state."""
        n = frames.shape[0]
        z = self.encoder(to_signal(rearrange(frames, "n t h w c -> (n t) h w c"), self.mean.dtype))
        z = (z - self.mean[:, None, None]) / self.std[:, None, None]
        return rearrange(z, "(n t) c h w -> n t c h w", n=n), None

    def decode(self, latents: Tensor, states: list | None = None) -> tuple[Tensor, None]:
        """Standardised latents [N, F, C, h, w] -> uint8 [N, F, H, W, 3] and the (empty) streaming state."""
        n = latents.shape[0]
        x = self.reconstruct(rearrange(latents, "n f c h w -> (n f) c h w"))
        return rearrange(to_frames(x), "(n f) h w c -> n f h w c", n=n), None

    def reconstruct(self, z: Tensor) -> Tensor:
        """Standardised latents [B, C, h, w] -> signal [B, 3, H, W] in about [-1, 1]."""
        z = z * self.std[:, None, None] + self.mean[:, None, None]
        return self.decoder(z.to(self.mean.dtype).contiguous(memory_format=torch.channels_last))


def to_signal(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1], channels_last."""
    return (frames.to(dtype) / 127.5 - 1).permute(0, 3, 1, 2)


def to_frames(x: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    return ((x.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
