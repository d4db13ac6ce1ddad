"""A published Wan2.1-family checkpoint and a preset -> WorldModel.

The video codec and the encoders of prompts and pictures are looked for beside the denoiser and in `base`, under the
names that their repositories give them. Every shape is checked before memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from engine.actions import ActionSpec, BinaryActions, ContinuousActions, DictActions, TextActions
from engine.checkpoints import fill, merged, open_denoiser, open_tensors, read_lora, unused_norms, wan_spec_of
from engine.checkpoints.places import LORAS, locate
from engine.codecs.preview import Preview
from engine.codecs.taehv import taehv_of
from engine.codecs.wan_vae_layout import diffusers_names, vae_of
from engine.conditioners.conditioner import Conditioner
from engine.conditioners.image import ClipVision
from engine.conditioners.text import TextEncoder
from engine.extras import Extras, places
from engine.hardware import default_dtype
from engine.model import Codec, WorldModel
from engine.models.heads import Silent
from engine.models.wan import WanDiT
from engine.presets import Preset
from engine.published import Rollout, WanSpec, WanVaeSpec
from engine.spec import WorldSpec

TEXT = ("models_t5_umt5-xxl-enc-bf16.pth", "text_encoder/config.json")
CLIP = ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",)
VAE = ("Wan2.1_VAE.pth", "vae/diffusion_pytorch_model.safetensors")
TINY = ("taew2_1.pth", "taew2_1.safetensors")
# Where the parts of Wan2.1 lie, as the published code expects them.
BASES = ("", "..", "wan_models/Wan2.1-T2V-1.3B", "../wan_models/Wan2.1-T2V-1.3B", "../Wan2.1-T2V-1.3B")
KEYS = {
    "universal": ("forward", "back", "left", "right"),
    "gta_drive": ("forward", "back"),
    "templerun": ("nomove", "jump", "slide", "turnleft", "turnright", "leftside", "rightside"),
}


def open_wan(
    source: str | Path, preset: Preset, device: torch.device, dtype: torch.dtype | None, extras: Extras
) -> WorldModel:
    """The WorldModel of a published checkpoint (see `load`)."""
    dtype = dtype or default_dtype(device)
    path = locate(source)
    extras = replace(extras, folders=places(path.parent, extras.base, BASES))
    tensors = open_denoiser(path, extras.prefer)
    sizes = wan_spec_of(tensors.shapes, preset.head_width, preset.text_tokens)
    sizes = replace(sizes, published=extras.numerics == "published")
    spec = world_spec(path.stem, sizes, preset, extras)
    lora = adapter_of(path, preset, extras)
    if lora is not None:
        tensors = merged(tensors, read_lora(lora, extras.lora_alpha))
    codec = open_codec(spec.codec, extras, device, dtype)
    check_restart(preset, codec, extras.codec)
    with torch.device("meta"):
        denoiser = WanDiT(sizes)
    denoiser = fill(denoiser, tensors, dtype, device, unused_norms(sizes)).eval().requires_grad_(False)
    encoders = conditioner(sizes, extras, device, dtype)
    return WorldModel(spec, denoiser, codec, Silent(), device, dtype, encoders)


def adapter_of(path: Path, preset: Preset, extras: Extras) -> str | Path | None:
    """The adapter to merge, if any.

    Raises:
        ValueError: the preset's base is not meant to run without one, and none is there.
    """
    if extras.lora is not None:
        return None if extras.lora == "none" else extras.lora
    names = [Path(x).name for x in LORAS]
    found = extras.find(names) if preset.adapter else None
    if preset.adapter and found is None:
        raise ValueError(
            f"{path} is a base that runs with an adapter, and there is no {' or '.join(names)} beside it: put it "
            "there, name it with lora=, or give lora='none' if these weights have it merged in"
        )
    return found


def world_spec(name: str, sizes: WanSpec, preset: Preset, extras: Extras) -> WorldSpec:
    """What a published world is.

    Raises:
        ValueError: weights and preset do not go together.
    """
    if not isinstance(preset.rollout, Rollout):
        raise ValueError("these are weights of the Wan2.1 family, and the preset is for MAGI-1")
    if bool(preset.mode) != (sizes.actions is not None):
        kind = "a Matrix-Game" if sizes.actions else "no Matrix-Game"
        raise ValueError(f"these are the weights of {kind}, and the preset is for {preset.mode or 'prompts'}")
    return WorldSpec(
        name=name,
        frame=extras.size or preset.size,
        fps=preset.fps,
        actions=actions_of(sizes, preset),
        codec=WanVaeSpec(channels=sizes.out_channels, tiny=extras.codec == "tiny"),
        denoiser=sizes,
        kv=preset.policy,
        block=preset.block,
        num_steps=len(preset.rollout.steps),
        shift=preset.rollout.shift,
        context_noise=0.0,
        rollout=preset.rollout,
    )


def actions_of(sizes: WanSpec, preset: Preset) -> ActionSpec:
    """A prompt, or a Matrix-Game's keys and mouse."""
    if sizes.actions is None:
        return TextActions()
    module = sizes.actions
    names = KEYS.get(preset.mode, ())
    if len(names) != module.keyboard:
        raise ValueError(f"mode {preset.mode!r} has {len(names)} keys, and the weights are for {module.keyboard}")
    keyboard = ("keyboard", BinaryActions(module.keyboard, names))
    mouse = ("mouse", ContinuousActions((-1.0,) * module.mouse, (1.0,) * module.mouse))
    return DictActions((keyboard, mouse) if module.mouse else (keyboard,))


def open_codec(spec, extras: Extras, device: torch.device, dtype: torch.dtype) -> Codec:
    """The video codec of a published world.

    Raises:
        ValueError: its weights are not there, or are none.
    """
    if extras.codec == "preview":
        return Preview(spec.frames_per_latent)
    names = TINY if extras.codec == "tiny" else VAE
    path = extras.find(names)
    if path is None:
        where = ", ".join(str(f) for f in extras.folders)
        raise ValueError(
            f"codec {extras.codec!r} needs {' or '.join(names)}, which is in none of {where}: put it there, name its "
            "folder with base=..., or take codec='preview', which shows latents without weights"
        )
    tensors = open_tensors(path)
    if path.name.startswith("diffusion_pytorch_model"):
        known = {theirs: ours for ours, theirs in diffusers_names(spec).items()}
        tensors = tensors.renamed(lambda name: known.get(name, name))
    make: Callable = taehv_of if extras.codec == "tiny" else vae_of
    return make(dict(tensors)).to(device, dtype).eval().requires_grad_(False)


def check_restart(preset: Preset, codec: Codec, name: str) -> None:
    """Raise ValueError if histories are to begin anew and cannot: from whole blocks, of which the first is encoded."""
    assert isinstance(preset.rollout, Rollout)
    if preset.rollout.restart is None:
        return
    length, overlap = preset.rollout.restart
    if not 0 < overlap < length or overlap % preset.block:
        raise ValueError(
            f"restart {preset.rollout.restart}: expected (length, overlap), whole blocks of {preset.block} overlapping"
        )
    if not hasattr(codec, "encoder"):
        raise ValueError(
            f"this preset begins a new history every {length} latent frames, from a picture that the codec encodes, "
            f"and codec {name!r} has no encoder: take codec='vae', or a preset whose rollout has restart=None"
        )


def conditioner(sizes: WanSpec, extras: Extras, device: torch.device, dtype: torch.dtype) -> Conditioner:
    """The encoders of prompts and pictures, made when they are first asked for."""
    text, clip = extras.find(TEXT), extras.find(CLIP)
    if text is not None and text.name == "config.json":
        text = text.parent
    where = ", ".join(str(f) for f in extras.folders)

    def make_text() -> TextEncoder:
        if text is None:
            raise ValueError(
                f"prompts need {TEXT[0]}, which is in none of {where}: put it there, or name its folder (base=)"
            )
        place = extras.text_device or "cpu"
        return TextEncoder.load(
            text, text_tokens=sizes.text_tokens, device=place, dtype=None if place == "cpu" else dtype
        )

    def make_clip() -> ClipVision:
        if clip is None:
            raise ValueError(
                f"pictures need {CLIP[0]}, which is in none of {where}: put it there, or name its folder (base=)"
            )
        return ClipVision.load(clip, device=device, dtype=dtype)

    return Conditioner(
        make_text if sizes.text_tokens else None,
        make_clip if sizes.image_tokens else None,
        cache=extras.text_cache,
        identity=text.name if text else TEXT[0],
        text_tokens=sizes.text_tokens,
        keep=bool(extras.text_device),
    )
