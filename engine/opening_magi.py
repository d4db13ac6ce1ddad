"""A published MAGI-1 checkpoint -> WorldModel: its denoiser under guidance, its codec, its prompts' encoder.

The config json that lies with the weights says their sizes and how they are rolled out; a preset may say the latter
otherwise. The VAE, T5 and the special tokens are looked for around the weights and in `base`, under the names that the
published code expects. Every shape is checked before memory is taken.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.actions import TextActions
from engine.checkpoints import open_tensors
from engine.checkpoints.magi import find_config, load_magi
from engine.checkpoints.magi_config import MagiConfig
from engine.codecs.magi_vae_layout import magi_vae_of
from engine.codecs.preview import Preview
from engine.conditioners.captions import CLEANERS
from engine.conditioners.magi_conditioner import MagiConditioner
from engine.conditioners.magi_text import MagiText, SpecialTokens
from engine.conditioners.t5 import T5Encoder
from engine.conditioners.tensors import read_json
from engine.extras import Extras, places
from engine.hardware import default_dtype
from engine.model import Codec, WorldModel
from engine.models.heads import Silent
from engine.models.magi import MagiDiT
from engine.models.magi_guidance import Guided
from engine.presets import Preset
from engine.published import MagiSpec, MagiVaeSpec, Staggered
from engine.spec import WorldSpec

TEXT = ("t5/t5-v1_1-xxl/config.json", "t5-v1_1-xxl/config.json")
SPECIAL = ("special_tokens.npz", "example/assets/special_tokens.npz")
VAE = ("vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors")
# Where the parts of a checkpoint lie, seen from its weights: ckpt/magi/4.5B_base/inference_weight, ckpt/vae, ckpt/t5.
BASES = ("", "..", "../..", "../../..")


def holds_magi(source: str | Path) -> bool:
    """Whether a MAGI-1 config json lies with a source."""
    here = Path(source)
    folders = [here, here.parent] if here.is_dir() else [here.parent] if here.is_file() else []
    return any("videodit_ardf" in p.read_text(errors="ignore") for f in folders for p in f.glob("*config.json"))


def open_magi(
    source: str | Path, preset: Preset | None, device: torch.device, dtype: torch.dtype | None, extras: Extras
) -> WorldModel:
    """The WorldModel of a MAGI-1 checkpoint (see `engine.load`)."""
    dtype = dtype or default_dtype(device)
    check_extras(extras)
    config = find_config(source, None)
    preset = preset or preset_of(config, source)
    rollout = preset.rollout
    assert isinstance(rollout, Staggered)
    distilled = rollout.guidance is None
    if config is not None and config.spec.distill != distilled and not config.spec.fp8:
        given, wanted = ("distilled", "base") if distilled else ("base", "distilled")
        raise ValueError(f"the preset is for {given} models, and the config of {source} for {wanted} ones")
    here = Path(source)
    extras = replace(extras, folders=places(here if here.is_dir() else here.parent, extras.base, BASES))
    codec = open_codec(extras, device, dtype)
    sizes, denoiser = load_magi(source, config, device=device, dtype=dtype, distill=None if config else distilled)
    spec = world_spec(Path(source).stem, sizes, preset, codec, extras)
    text = text_of(denoiser, extras)
    guided = Guided(denoiser, text.nothing(), rollout, preset.block)
    return WorldModel(spec, guided, codec, Silent(), device, dtype, conditioner(text, extras))


def check_extras(extras: Extras) -> None:
    """Raise ValueError for what there is not of MAGI-1."""
    for name, given in (("lora", extras.lora), ("lora_alpha", extras.lora_alpha), ("prefer", extras.prefer)):
        if given is not None:
            raise ValueError(f"{name} {given!r}: a MAGI-1 checkpoint takes none")
    if extras.codec == "tiny":
        raise ValueError("codec 'tiny': there is none for MAGI-1; take 'vae' or 'preview'")


def preset_of(config: MagiConfig | None, source: str | Path) -> Preset:
    """How the config says that the model is run."""
    if config is None:
        raise ValueError(
            f"no config json lies with {source}: put it there, or give a preset, such as 'magi-4.5b-distill'"
        )
    return Preset(
        config.rollout, block=config.chunk, size=config.size, fps=config.fps, text_tokens=config.spec.text_tokens
    )


def text_of(denoiser: MagiDiT, extras: Extras) -> MagiText:
    """The special tokens that go with a denoiser; none, with a warning, where their file is not there."""
    path, null = extras.find(SPECIAL), denoiser.y_embedder.null_caption_embedding.float().cpu()
    if path is None and extras.tokens:
        warnings.warn(
            f"there is no special_tokens.npz in {', '.join(str(f) for f in extras.folders)}: prompts go without "
            f"{', '.join(extras.tokens)}, which the published scripts put before them. It lies in the repository "
            "SandAI-org/MAGI-1, example/assets: put it there, or give tokens=() to go without",
            stacklevel=2,
        )
    tokens = SpecialTokens.load(path) if path is not None else None
    return MagiText(null, tokens, extras.tokens)


def conditioner(text: MagiText, extras: Extras) -> MagiConditioner:
    """The encoder of prompts, made when it is first asked for."""
    config = extras.find(TEXT)
    cleaner = "published" if extras.clean_prompts else "any-language"
    where = ", ".join(str(f) for f in extras.folders)

    def make() -> T5Encoder:
        if config is None:
            raise ValueError(
                f"prompts need {TEXT[0]} and what lies with it, in one of {where}: put it there, or name "
                "its folder (base=)"
            )
        place = extras.text_device or "cpu"
        return T5Encoder.load(config.parent, clean=CLEANERS[cleaner], text_tokens=len(text.null), device=place)

    return MagiConditioner(text, make, extras.text_cache, f"t5-v1_1-xxl-{cleaner}", bool(extras.text_device))


def world_spec(name: str, sizes: MagiSpec, preset: Preset, codec: Codec, extras: Extras) -> WorldSpec:
    """What a MAGI-1 world is."""
    rollout = preset.rollout
    assert isinstance(rollout, Staggered)
    kind = getattr(codec, "spec", None) or MagiVaeSpec(channels=sizes.latent_channels)
    return WorldSpec(
        name=name,
        frame=extras.size or preset.size,
        fps=preset.fps,
        actions=TextActions(),
        codec=kind,
        denoiser=sizes,
        kv=preset.policy,
        block=preset.block,
        num_steps=rollout.num_steps,
        context_noise=0.0,
        staggered=rollout,
    )


def open_codec(extras: Extras, device: torch.device, dtype: torch.dtype) -> Codec:
    """The video codec.

    Raises:
        ValueError: its weights are not there, or are none.
    """
    if extras.codec == "preview":
        return Preview(MagiVaeSpec().frames_per_latent, causal=False)
    path = extras.find(VAE)
    if path is None or not (path.parent / "config.json").is_file():
        where = ", ".join(str(f) for f in extras.folders)
        raise ValueError(
            f"codec 'vae' needs {VAE[0]} and the config.json beside it, which are in none of {where}: put them there, "
            "name their folder with base=..., or take codec='preview', which shows latents without weights"
        )
    config = read_json(path.parent / "config.json")
    vae: Any = magi_vae_of(dict(open_tensors(path)), config)
    return vae.to(device, dtype).eval().requires_grad_(False)
