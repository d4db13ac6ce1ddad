"""What it takes to decode a block on several devices together, in words: a line below a plan."""

from __future__ import annotations

from typing import Any

import torch

from engine.codecs.autoencoder import AutoEncoder
from engine.codecs.magi_vae import MagiVae
from engine.codecs.taehv import Taehv
from engine.codecs.wan_vae import WanVae
from engine.parallel.costs import Transfer
from engine.parallel.tiles_costs import Latents, decode_transfers
from engine.published import MagiVaeSpec, WanVaeSpec
from engine.spec import WorldSpec


def codec_of(spec: WorldSpec) -> Any:
    """A world's codec without weights."""
    with torch.device("meta"):
        if isinstance(spec.codec, MagiVaeSpec):
            return MagiVae(spec.codec, encoder=False)
        if isinstance(spec.codec, WanVaeSpec):
            return Taehv(spec.codec.channels, encoder_width=0) if spec.codec.tiny else WanVae(spec.codec, encoder=False)
        return AutoEncoder(spec.codec.channels, spec.codec.widths, spec.codec.depth)


def decoding(spec: WorldSpec, ranks: int, worlds: int, dtype: str) -> list[Transfer]:
    """What ranks send to decode a block of some worlds together. Args: dtype: bfloat16 or float32."""
    _, rows, width = spec.latent
    codec = codec_of(spec).to(getattr(torch, dtype))
    return decode_transfers(codec, Latents(worlds, spec.block, rows, width), ranks)


def decoding_line(spec: WorldSpec, ranks: int, worlds: int, dtype: str) -> str:
    """How a block is decoded."""
    head = "decoding is not among the figures"
    if ranks == 1:
        return head
    made = decoding(spec, ranks, worlds, dtype)
    if not made:
        return f"{head}: there are more ranks than rows of latents, so that each decodes all of it"
    sent, calls = max(map(sum, zip(*(t.sent for t in made), strict=True))), sum(t.calls for t in made)
    ways = "tiles" if isinstance(spec.codec, MagiVaeSpec) else "strips"
    return f"{head}: in {ways} over the ranks it sends {sent / 1e9:.3f} GB in {calls} call{'s' * (calls > 1)}"
