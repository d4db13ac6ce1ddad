"""Preview: what latents show without a codec's weights. Three of their channels as red, green and blue, enlarged.

A rough picture of where things are, at no cost: for runs whose video codec is not at hand. Encodes nothing.

Shapes: N worlds, F latent frames, C channels, h w their size, T frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Preview(nn.Module):
    """Latents [N, F, C, h, w] -> frames uint8 [N, T, 8 h, 8 w, 3], T = 4 F, or 4 F - 3 for a world's first if `causal`.

    The streaming state of a world is how many latent frames it has shown.
    """

    scale = 8

    def __init__(self, frames_per_latent: int = 4, causal: bool = True):
        super().__init__()
        self.frames_per_latent, self.causal = frames_per_latent, causal

    def encode(self, frames: Tensor, states: list[Any] | None = None) -> tuple[Tensor, list[Any] | None]:
        raise ValueError(
            "a preview has no encoder: to begin from pictures, open the checkpoint with codec='vae' and "
            "its VAE's weights beside it"
        )

    def decode(self, latents: Tensor, states: list[Any] | None = None) -> tuple[Tensor | list[Tensor], list[Any]]:
        """See `engine.model.Codec`."""
        states = states or [None] * len(latents)
        pictures = [self._shown(x, self.causal and not state) for x, state in zip(latents, states, strict=True)]
        alike = len({len(x) for x in pictures}) == 1
        return torch.stack(pictures) if alike else pictures, [(s or 0) + latents.shape[1] for s in states]

    def _shown(self, latents: Tensor, first: bool) -> Tensor:
        """One world's frames [T, H, W, 3]."""
        pixels = ((latents[:, :3].float() / 3).tanh() * 127.5 + 127.5).round().to(torch.uint8)
        frames = pixels.movedim(1, -1).repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)
        return frames.repeat_interleave(self.frames_per_latent, 0)[self.frames_per_latent - 1 if first else 0 :]
