"""A path or hub id -> WorldModel: one of our world folders, or a published Wan2.1-family checkpoint under a preset.

A published world needs a denoiser; its video codec and the encoders of prompts and pictures are looked for beside it
and in `base`, under the names that their repositories give them. Every shape is checked before memory is taken.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from engine.actions import ActionSpec, BinaryActions, ContinuousActions, DictActions, TextActions
from engine.checkpoints import fill, merged, open_denoiser, open_tensors, read_lora, unused_norms, wan_spec_of
from engine.checkpoints.formats import SUFFIXES
from engine.checkpoints.places import HUB_ID, LORAS, locate
from engine.codecs.preview import Preview
from engine.codecs.taehv import taehv_of
from engine.codecs.wan_vae_layout import diffusers_names, vae_of
from engine.conditioners.conditioner import Conditioner
from engine.conditioners.image import ClipVision
from engine.conditioners.text import TextEncoder
from engine.hardware import default_dtype
from engine.loading import check_device, check_dtype, load_world
from engine.model import Codec, WorldModel
from engine.models.heads import Silent
from engine.models.wan import WanDiT
from engine.presets import PRESETS, Preset
from engine.presets import preset as named
from engine.published import WanSpec, WanVaeSpec
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


@dataclass(frozen=True)
class Extras:
    """What goes with a published denoiser, and how.

    Attributes:
        base: a folder with the VAE and the encoders, if they are not beside the denoiser.
        lora: a low-rank adapter to merge; by default, for LongLive's presets, the one published beside the denoiser.
            "none" takes the weights as they are, such as those of a file that it was merged into.
        lora_alpha: the adapter's; its rank by default, which makes its scale 1.
        codec: "vae", "tiny" (TAEHV, 25 times cheaper, softer), or "preview" (no weights: three latent channels).
        size: (H, W) in pixels, multiples of 16; the preset's by default.
        numerics: "published" rounds where the published code does; "fast" differs by rounding only.
        prefer: which weights of a checkpoint that has several, such as "generator" for "generator_ema".
        text_device: where the text encoder runs; "" drops it from memory after every prompt.
        text_cache: a folder that keeps prompts' embeddings.
    """

    base: str | Path | None = None
    lora: str | Path | None = None
    lora_alpha: float | None = None
    codec: str = "vae"
    size: tuple[int, int] | None = None
    numerics: str = "published"
    prefer: str | None = None
    text_device: str = "cpu"
    text_cache: str | Path | None = None
    folders: tuple[Path, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, known in (("codec", ("vae", "tiny", "preview")), ("numerics", ("published", "fast"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {list(known)}")

    def find(self, names: Sequence[str]) -> Path | None:
        """The first of some files that is there."""
        return next((f / n for f in self.folders for n in names if (f / n).is_file()), None)


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    preset: str | Preset | None = None,
    **extras,
) -> WorldModel:
    """Load a world for inference.

    Args:
        source: a world folder (world.json, model.safetensors), or a published checkpoint: a file, a folder, or a hub
            id such as "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt".
        device: "cpu", "cuda", "cuda:1", ...
        dtype: torch's, or its name ("float32", "bfloat16"); by default bf16 where the device computes in it, fp32
            elsewhere.
        preset: what a published checkpoint's weights do not tell: window, sinks, steps (see presets.PRESETS), by
            name or as a value of your own.
        extras: of a published checkpoint; see `Extras`.

    Raises:
        ValueError: the source, weights, device or an argument is not what it should be.
    """
    own = (Path(source) / "world.json").is_file()
    if own and (preset is not None or extras):
        given = [*(["preset"] if preset is not None else []), *extras]
        raise ValueError(f"{source} is a world folder, whose card says all: leave out {', '.join(given)}")
    if own or (preset is None and not looks_published(source)):
        return load_world(source, device, dtype)
    if preset is None:
        raise ValueError(
            f"{source} is a published checkpoint: say how it is run with preset=..., one of engine.PRESETS "
            f"({', '.join(PRESETS)})"
        )
    chosen = named(preset) if isinstance(preset, str) else preset
    return open_published(source, chosen, check_device(device), check_dtype(dtype), extras_of(extras))


def looks_published(source: str | Path) -> bool:
    """Whether a source without world.json might be a checkpoint: a file, a folder with weights in it, or a hub id."""
    path = Path(source)
    if path.is_dir():
        return any(path.rglob(f"*{suffix}") for suffix in SUFFIXES)
    hub = HUB_ID.fullmatch(str(source))
    return path.is_file() or bool(hub and (hub["scheme"] or not Path(path.parts[0]).is_dir()))


def extras_of(given: Mapping[str, object]) -> Extras:
    """Raises ValueError on a name that is none of `Extras`."""
    known = [f.name for f in fields(Extras) if f.repr]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"argument {name!r}: expected one of {', '.join(known)}.{hint}")
    return Extras(**given)  # type: ignore[arg-type]


def open_published(
    source: str | Path, preset: Preset, device: torch.device, dtype: torch.dtype | None, extras: Extras
) -> WorldModel:
    """The WorldModel of a published checkpoint (see `load`)."""
    dtype = dtype or default_dtype(device)
    path = locate(source)
    extras = replace(extras, folders=places(path, extras.base))
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


def places(path: Path, base: str | Path | None) -> tuple[Path, ...]:
    """Folders in which the parts of a checkpoint may lie, the user's own first."""
    if base is not None and not Path(base).is_dir():
        raise ValueError(f"base {str(base)!r}: there is no such folder")
    own = [Path(base)] if base is not None else []
    beside = [(path.parent / b) for b in BASES]
    return (*own, *(b.resolve() for b in beside if b.is_dir()))


def world_spec(name: str, sizes: WanSpec, preset: Preset, extras: Extras) -> WorldSpec:
    """What a published world is.

    Raises:
        ValueError: weights and preset do not go together.
    """
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
