"""Shapes of a Wan2.1 denoiser's weights -> its WanSpec.

Expects the original names (names.py). Window, sinks, steps and shift are in no weight: a preset knows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from engine.checkpoints.tensors import Shape
from engine.published import ActionModule, WanSpec

PATCH = 4  # latent pixels of a token
UNUSED_NORMS = ("img_attn_q_norm", "img_attn_k_norm", "key_attn_q_norm", "key_attn_k_norm")


def wan_spec_of(
    shapes: Mapping[str, Shape], head_width: int = 128, text_tokens: int = 512, image_tokens: int = 257
) -> WanSpec:
    """Sizes of a denoiser: text-to-video, image-to-video (`k_img` in its layers) or Matrix-Game (an image, no text).

    Args:
        shapes: original name -> shape; the patch embedding's kernel as published, or flat.
        head_width: of attention. No shape tells it.
        text_tokens, image_tokens: of a prompt and of CLIP features, where the model has them.

    Raises:
        ValueError: a weight that tells a size is missing, or the sizes contradict each other.
    """
    width, ffn = _size(shapes, "patch_embedding.weight", 0), _size(shapes, "blocks.0.ffn.0.weight", 0)
    if width % head_width:
        raise ValueError(f"width {width} is not a multiple of head_width {head_width}: give the model's head_width=")
    kernel = shapes["patch_embedding.weight"]
    text, image = "text_embedding.0.weight" in shapes, "img_emb.proj.1.weight" in shapes
    spec = WanSpec(
        width=width,
        ffn=ffn,
        heads=width // head_width,
        layers=1 + max(_blocks(shapes, "")),
        in_channels=kernel[1] if len(kernel) > 2 else kernel[1] // PATCH,
        out_channels=_size(shapes, "head.head.weight", 0) // PATCH,
        frequencies=_size(shapes, "time_embedding.0.weight", 1),
        text_width=_size(shapes, "text_embedding.0.weight", 1) if text else WanSpec.text_width,
        text_tokens=text_tokens if text else 0,
        image_width=_size(shapes, "img_emb.proj.1.weight", 1) if image else WanSpec.image_width,
        image_tokens=image_tokens if image else 0,
        actions=_action_module(shapes, width),
    )
    _check_kind(spec, "blocks.0.cross_attn.k_img.weight" in shapes)
    return spec


def unused_norms(spec: WanSpec) -> dict[str, Shape]:
    """Weights that Matrix-Game's files hold and its code never applies: to be ignored, but there and of this shape."""
    if spec.actions is None:
        return {}
    names = UNUSED_NORMS if spec.actions.mouse else UNUSED_NORMS[2:]
    layers = spec.actions.layers
    return {f"blocks.{i}.action_model.{name}.weight": (spec.actions.head_width,) for i in layers for name in names}


def _check_kind(spec: WanSpec, image_keys: bool) -> None:
    if not (spec.text_tokens or spec.image_tokens):
        raise ValueError("it has neither text_embedding nor img_emb: expected one of a Wan2.1 denoiser's kinds")
    if image_keys != spec.separate_image:
        there = "has" if image_keys else "lacks"
        raise ValueError(f"it {there} cross_attn.k_img: expected it exactly where there are text_embedding and img_emb")
    if not spec.text_tokens and spec.actions is None:
        raise ValueError("it has img_emb without text_embedding, as Matrix-Game, but no action_model in any block")


def _action_module(shapes: Mapping[str, Shape], width: int) -> ActionModule | None:
    layers = sorted(_blocks(shapes, r"action_model\."))
    if not layers:
        return None
    prefix = f"blocks.{layers[0]}.action_model."
    hidden, keyboard = (_size(shapes, f"{prefix}keyboard_embed.0.weight", axis) for axis in (0, 1))
    both, seen = (_size(shapes, f"{prefix}keyboard_attn_kv.weight", axis) for axis in (0, 1))
    head_width = _size(shapes, f"{prefix}key_attn_q_norm.weight", 0)
    mouse = _size(shapes, f"{prefix}mouse_mlp.0.weight", 1) - width if f"{prefix}t_qkv.weight" in shapes else 0
    return ActionModule(
        layers=tuple(layers),
        hidden=hidden,
        heads=both // 2 // head_width,
        head_width=head_width,
        keyboard=keyboard,
        mouse=mouse * hidden // seen,
        window=seen // hidden // ActionModule.frames_per_latent,
    )


def _blocks(names: Iterable[str], inside: str) -> set[int]:
    """Indices of the blocks with a parameter whose name goes on with `inside`."""
    pattern = re.compile(rf"blocks\.(\d+)\.{inside}")
    return {int(match[1]) for match in map(pattern.match, names) if match}


def _size(shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    if name not in shapes:
        raise ValueError(f"no {name}: not the weights of a Wan2.1 denoiser under the original names")
    if axis >= len(shapes[name]):
        raise ValueError(f"{name} is {list(shapes[name])}: expected more axes")
    return shapes[name][axis]
