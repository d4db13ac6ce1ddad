"""Sizes of a Wan2.1 VAE read off its weights, and the names that diffusers gives them. Knows names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
from torch import Tensor

from engine.codecs.video import channels_last
from engine.codecs.wan_vae import WanVae
from engine.published import WanVaeSpec

Shapes = Mapping[str, tuple[int, ...]]

# diffusers' AutoencoderKLWan (src/diffusers/models/autoencoders/autoencoder_kl_wan.py) by the published names.
RENAMED = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(en|de)coder\.conv1\.", r"\1coder.conv_in."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def vae_of(weights: Mapping[str, Tensor], **options: Any) -> WanVae:
    """A VAE with these weights, which have the published names and may be of the encoder or the decoder only.

    Args:
        options: further arguments of WanVae, such as the latents' `mean` and `std`.

    Raises:
        ValueError: they are no VAE's, or a tensor is missing, left over or of another shape.
    """
    shapes = {name: tuple(x.shape) for name, x in weights.items()}
    spec, temporal = spec_of(shapes), temporal_of(shapes)
    encoder, decoder = (any(name.startswith(half) for name in shapes) for half in ("encoder.", "decoder."))
    with torch.device("meta"):
        vae = WanVae(spec, temporal=temporal, encoder=encoder, decoder=decoder, **options)
    try:
        vae.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"these are no weights of a Wan2.1 VAE of {spec}: {error}") from None
    channels_last(vae)
    return vae


def spec_of(shapes: Shapes) -> WanVaeSpec:
    """Sizes of the VAE whose tensors have these published names and shapes; either half is enough.

    Raises:
        ValueError: the names are no Wan2.1 VAE's.
    """
    half = "encoder" if "encoder.conv1.weight" in shapes else "decoder"
    blocks, halvings = blocks_of(shapes, half), temporal_of(shapes)
    per_level = len(blocks) // (len(halvings) + 1)
    widths = blocks[::per_level]
    start = shapes["encoder.conv1.weight"][0] if half == "encoder" else gcd(*widths)
    if any(width % start for width in widths):
        raise ValueError(f"widths {widths} of the VAE are no multiples of its first, {start}")
    return WanVaeSpec(
        channels=shapes["encoder.head.2.weight"][0] // 2 if half == "encoder" else shapes["decoder.conv1.weight"][1],
        width=start,
        multiples=tuple(width // start for width in widths),
        depth=per_level - (half == "decoder"),
        scale=2 ** len(halvings),
        frames_per_latent=2 ** sum(halvings),
    )


def temporal_of(shapes: Shapes) -> tuple[bool, ...]:
    """Which of the encoder's halvings halve time too, from the names of either half."""
    half = "encoder" if "encoder.conv1.weight" in shapes else "decoder"
    steps = [path for path in layers_of(shapes, half) if f"{path}.resample.1.weight" in shapes]
    return tuple(f"{path}.time_conv.weight" in shapes for path in steps)


def blocks_of(shapes: Shapes, half: str) -> list[int]:
    """Widths of the residual blocks, from the full size down."""
    names = [f"{path}.residual.6.weight" for path in layers_of(shapes, half)]
    return [shapes[name][0] for name in names if name in shapes]


def layers_of(shapes: Shapes, half: str) -> list[str]:
    """Paths of the layers that change the size, from the full size down."""
    prefix = {"encoder": "encoder.downsamples.", "decoder": "decoder.upsamples."}[half]
    places = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in shapes if name.startswith(prefix)})
    if not places:
        raise ValueError(
            f"no encoder.downsamples.* and no decoder.upsamples.* among {len(shapes)} tensors: expected a Wan2.1 VAE "
            "under its published names"
        )
    return [f"{prefix}{i}" for i in (places if half == "encoder" else reversed(places))]


def diffusers_names(spec: WanVaeSpec) -> dict[str, str]:
    """The name in diffusers' AutoencoderKLWan of each published name; shapes are the same."""
    return {name: diffusers_name(name, spec.depth + 2) for name in unfilled(spec).state_dict()}


def unfilled(spec: WanVaeSpec, **options: Any) -> WanVae:
    """A VAE without weights or statistics, for its names and sizes."""
    with torch.device("meta"):
        return WanVae(spec, mean=[0.0] * spec.channels, std=[1.0] * spec.channels, **options)


def diffusers_name(name: str, per_level: int) -> str:
    """Args: per_level: layers of the decoder at each size, its upsampling among them."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    if place := re.match(r"decoder\.upsamples\.(\d+)\.", name):
        level, i = divmod(int(place[1]), per_level)
        part = f"resnets.{i}" if i < per_level - 1 else "upsamplers.0"
        name = f"decoder.up_blocks.{level}.{part}.{name[place.end() :]}"
    return name
