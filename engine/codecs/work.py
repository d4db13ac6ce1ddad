"""The work of a decode: floating-point operations of a codec's convolutions and attention, from sizes alone.

Shapes: F latent frames, T frames at a layer's rate, h w a layer's height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from engine.codecs.taehv import Grow, Taehv
from engine.codecs.wan_vae import WanVae
from engine.codecs.wan_vae_layers import Upsample
from engine.codecs.wan_vae_layout import unfilled
from engine.published import WanVaeSpec


def flops(spec: WanVaeSpec, height: int, width: int, frames: int = 1, temporal: Sequence[bool] | None = None) -> int:
    """Operations, two a multiplication and addition, of decoding latent frames of a world that is not fresh.

    Norms, activations and copies are not counted.

    Args:
        height, width: of the picture, in pixels.
        frames: latent frames F.
        temporal: as WanVae takes it.
    """
    h, w = height // spec.scale, width // spec.scale
    if not spec.tiny:
        return of_vae(unfilled(spec, temporal=temporal, encoder=False), frames, h, w)
    with torch.device("meta"):
        return of_taehv(Taehv(spec.channels, encoder_width=0), frames, h, w)


def of_vae(vae: WanVae, t: int, h: int, w: int) -> int:
    decoder, deepest = vae.decoder, vae.spec.width * vae.spec.multiples[-1]
    total = of_convs(t * h * w, vae.conv2, decoder.conv1, decoder.middle) + 4 * t * (h * w) ** 2 * deepest
    for layer in decoder.upsamples:
        if isinstance(layer, Upsample):
            total += of_convs(t * h * w, layer.time_conv)
            t, h, w = t * (2 if layer.time_conv else 1), 2 * h, 2 * w
            total += of_convs(t * h * w, layer.resample)
        else:
            total += of_convs(t * h * w, layer)
    return total + of_convs(t * h * w, decoder.head)


def of_taehv(taehv: Taehv, t: int, h: int, w: int) -> int:
    total = 0
    for layer in taehv.decoder:
        total += of_convs(t * h * w, layer)
        if isinstance(layer, Grow):
            t, h, w = t * layer.stride, 2 * h, 2 * w
    return total


def of_convs(places: int, *layers: nn.Module | None) -> int:
    """Operations of all convolutions in some layers whose outputs have so many places."""
    modules = [module for layer in layers if layer is not None for module in layer.modules()]
    return sum(2 * places * conv.weight.numel() for conv in modules if isinstance(conv, nn.Conv2d | nn.Conv3d))
