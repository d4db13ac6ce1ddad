"""Sizes of MAGI-1's VAE read off its weights and config.json, and a VAE with those weights. Knows names and shapes.

The number of heads, and how the position tables' rows are a grid, are in no shape: the config says them. What both say
has to agree. Source: SandAI-org/MAGI-1, inference/model/vae.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.codecs.magi_vae import MagiVae
from engine.published import MagiVaeSpec

Shapes = Mapping[str, tuple[int, ...]]

# The one architecture that was published.
PUBLISHED = {
    "in_chans": 3,
    "double_z": True,
    "qkv_bias": True,
    "with_cls_token": True,
    "norm_code": False,
    "ln_in_attn": True,
    "conv_last_layer": True,
    "use_rope": False,
    "use_final_proj": False,
}

# What the published code takes where a config says nothing.
DEFAULTS = {"video_size": 256, "video_length": 16, "patch_size": 8, "patch_length": 4}


def magi_vae_of(weights: Mapping[str, Tensor], config: Mapping[str, Any], **options: Any) -> MagiVae:
    """A VAE with these weights, which have the published names and may be of the encoder or the decoder only.

    Args:
        config: what config.json beside them holds.
        options: further arguments of MagiVae, such as `tiling`.

    Raises:
        ValueError: config and weights do not go together, or a tensor is missing, left over or of another shape.
    """
    shapes = {name: tuple(x.shape) for name, x in weights.items()}
    spec = magi_vae_spec_of(shapes, config)
    encoder, decoder = (any(name.startswith(half) for name in shapes) for half in ("encoder.", "decoder."))
    with torch.device("meta"):
        vae = MagiVae(spec, encoder=encoder, decoder=decoder, **options)
    try:
        vae.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"these are no weights of a MAGI-1 VAE of {spec}: {error}") from None
    return vae


def magi_vae_spec_of(shapes: Shapes, config: Mapping[str, Any]) -> MagiVaeSpec:
    """Sizes of the VAE whose tensors have these published names and shapes; either half is enough.

    Raises:
        ValueError: the names are no MAGI-1 VAE's, or the config is of another.
    """
    stated, told = stated_by(config), told_by(shapes)
    for name, size in told.items():
        if stated.get(name, size) != size:
            raise ValueError(f"config.json of the VAE says {name} {stated[name]}, and its weights are of {size}")
    sizes = {**DEFAULTS, **stated, **told}
    scale, rate = int(sizes["patch_size"]), int(sizes["patch_length"])
    side = sizes["video_size"] // scale
    return MagiVaeSpec(
        channels=told["z_chans"],
        width=told["embed_dim"],
        heads=sizes["num_heads"],
        layers=told["depth"],
        hidden=told["hidden"],
        grid=(sizes["video_length"] // rate, side, side),
        scale=scale,
        frames_per_latent=rate,
        factor=float(config.get("scale_factor", MagiVaeSpec.factor)),
    )


def stated_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of sizes.

    Raises:
        ValueError: it is of another architecture.
    """
    stated = config.get("ddconfig")
    if config.get("_class_name") != "ViTVAE" or not isinstance(stated, Mapping) or "num_heads" not in stated:
        raise ValueError(
            f"this is no config.json of MAGI-1's VAE (it has {', '.join(config) or 'nothing'}): expected _class_name "
            "ViTVAE and a ddconfig with num_heads"
        )
    for name, value in PUBLISHED.items():
        if stated.get(name, value) != value:
            raise ValueError(f"the VAE has {name} {stated[name]}, and only {value} was published")
    if config.get("model_type", "vit") != "vit":
        raise ValueError(f"the VAE has model_type {config['model_type']!r}, and only 'vit' was published")
    return dict(stated)


def told_by(shapes: Shapes) -> dict[str, int]:
    """What shapes tell, by the names of a config; and the width inside the MLPs."""
    half = "encoder" if any(name.startswith("encoder.") for name in shapes) else "decoder"
    try:
        sizes = {
            "embed_dim": shapes[f"{half}.norm.weight"][0],
            "hidden": shapes[f"{half}.blocks.0.mlp.fc1.weight"][0],
            "depth": len({name.split(".")[2] for name in shapes if name.startswith(f"{half}.blocks.")}),
        }
        if half == "decoder":
            return {**sizes, "z_chans": shapes["decoder.proj_in.weight"][1]}
        _, _, rate, scale, _ = shapes["encoder.patch_embed.proj.weight"]
        channels = shapes["encoder.last_layer.weight"][0] // 2
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            f"no encoder.* and no decoder.* of a MAGI-1 VAE among {len(shapes)} tensors: expected its published names"
        ) from None
    return {**sizes, "z_chans": channels, "patch_length": rate, "patch_size": scale}
