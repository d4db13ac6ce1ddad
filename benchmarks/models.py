"""Published models by name, Wan2.1-family and MAGI-1: their full sizes, and models of random weights to measure.

Speed and memory do not depend on what the weights are, as long as nothing in them is zero, huge or not a number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from engine.codecs.magi_vae import MagiVae
from engine.codecs.preview import Preview
from engine.codecs.taehv import Taehv
from engine.codecs.wan_vae import WanVae
from engine.conditioners.magi_text import NULL_TOKENS
from engine.extras import Extras
from engine.model import Codec, WorldModel
from engine.models.heads import Silent
from engine.models.magi import MagiDiT
from engine.models.magi_guidance import Guided
from engine.models.magi_layers import island
from engine.models.wan import WanDiT
from engine.opening_magi import world_spec as magi_world_spec
from engine.opening_wan import world_spec
from engine.presets import Preset
from engine.published import ActionModule, MagiSpec, MagiVaeSpec, Staggered, WanSpec, WanVaeSpec
from engine.spec import WorldSpec
from engine.swap import M

T2V = WanSpec()
GAME = WanSpec(in_channels=36, text_tokens=0, image_tokens=257, actions=ActionModule(tuple(range(15))))
MODELS: dict[str, WanSpec] = {
    "t2v-1.3b": T2V,
    "t2v-14b": replace(T2V, width=5120, ffn=13824, heads=40, layers=40),
    "matrix-game-2-universal": GAME,
    "matrix-game-2-gta-drive": replace(GAME, actions=ActionModule(tuple(range(15)), keyboard=2)),
    "matrix-game-2-templerun": replace(GAME, actions=ActionModule(tuple(range(15)), keyboard=7, mouse=0)),
    "tiny": WanSpec(width=64, ffn=128, heads=2, layers=2, frequencies=32, text_width=32, text_tokens=12),
}
VAE_PARAMETERS = 126_892_531  # of the published Wan2.1_VAE.pth
TINY_VAE = WanVaeSpec(width=8, multiples=(1, 2, 2, 2), depth=1)
MAGI = MagiSpec()
MAGI_WIDE = MagiSpec(
    width=6144,
    ffn=16384,
    layers=48,
    heads=48,
    condition_width=1536,
    in_channels=32,
    out_channels=32,
    doubled=True,
    rescale=0.1,
    gated=True,
)
MAGI_MODELS: dict[str, MagiSpec] = {
    "magi-4.5b": MAGI,
    "magi-24b": MAGI_WIDE,
    "magi-4.5b-fp8": replace(MAGI, fp8=True),
    "magi-24b-fp8": replace(MAGI_WIDE, fp8=True),
    "magi-tiny": MagiSpec(
        width=64, ffn=96, layers=3, heads=4, kv_heads=2, head_width=16, condition_width=16, text_width=24
    ),
}
TINY_MAGI_VAE = MagiVaeSpec(width=512, heads=2, layers=1, hidden=64, grid=(3, 4, 4))


def sizes_of(model: str) -> WanSpec:
    """The sizes of a model by name.

    Raises:
        ValueError: there is none of that name.
    """
    if model not in MODELS:
        raise ValueError(f"model {model!r}: expected one of {', '.join(MODELS)}")
    return MODELS[model]


def spec_of(model: str, preset: Preset, codec: str, size: tuple[int, int] | None, numerics: str) -> WorldSpec:
    """What a world of a model is.

    Args:
        codec: "vae", "tiny" or "preview".
        size: (H, W) in pixels; the preset's by default.
        numerics: "published" or "fast" (see `engine.extras.Extras`).

    Raises:
        ValueError: the model and the preset do not go together, or an argument is unknown.
    """
    extras = Extras(codec=codec, size=size, numerics=numerics)
    sizes = replace(sizes_of(model), published=numerics == "published")
    spec = world_spec(model, sizes, preset, extras)
    return replace(spec, codec=replace(TINY_VAE, tiny=codec == "tiny")) if model == "tiny" else spec


def magi_spec_of(model: str, preset: Preset, size: tuple[int, int] | None) -> WorldSpec:
    """What a world of a MAGI-1 model is; distilled where the preset is without guidance.

    Raises:
        ValueError: there is none of that name, or the preset is another model's.
    """
    if model not in MAGI_MODELS or not isinstance(preset.rollout, Staggered):
        raise ValueError(f"model {model!r}: expected one of {', '.join(MAGI_MODELS)}, and a preset of MAGI-1")
    sizes = replace(MAGI_MODELS[model], distill=preset.rollout.guidance is None)
    if sizes.fp8 and not sizes.distill:
        raise ValueError(f"model {model!r}: only distilled models were quantised; take a preset of one")
    spec = magi_world_spec(model, sizes, preset, Preview(causal=False), Extras(size=size))
    return replace(spec, codec=TINY_MAGI_VAE) if model == "magi-tiny" else spec


def random_magi(spec: WorldSpec, codec: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> WorldModel:
    """As `random_model`, of MAGI-1. Args: codec: "vae" or "preview"."""
    assert isinstance(spec.denoiser, MagiSpec)
    assert isinstance(spec.codec, MagiVaeSpec)
    assert spec.staggered is not None
    with torch.device("meta"):
        unfilled, vae = MagiDiT(spec.denoiser), MagiVae(spec.codec, encoder=False)
    denoiser = randomise(unfilled, device, dtype, seed)
    null = denoiser.y_embedder.null_caption_embedding[:NULL_TOKENS]
    guided = Guided(denoiser, null, spec.staggered, spec.block).requires_grad_(False)
    made = Preview(causal=False) if codec == "preview" else randomise(vae, device, dtype, seed + 1)
    return WorldModel(spec, guided, cast("Codec", made), Silent(), device, dtype)


def random_model(spec: WorldSpec, codec: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> WorldModel:
    """A world's model of random weights, made where it is to run."""
    with torch.device("meta"):
        assert isinstance(spec.denoiser, WanSpec)
        denoiser = WanDiT(spec.denoiser)
    denoiser = randomise(denoiser, device, dtype, seed)
    return WorldModel(spec, denoiser, random_codec(spec, codec, device, dtype, seed + 1), Silent(), device, dtype)


def random_codec(spec: WorldSpec, codec: str, device: torch.device, dtype: torch.dtype, seed: int = 1) -> Codec:
    """A video codec of random weights: "vae" and "tiny" of the spec's sizes, "preview" has none."""
    assert isinstance(spec.codec, WanVaeSpec)
    if codec == "preview":
        return Preview(spec.codec.frames_per_latent)
    return cast("Codec", randomise(unfilled_codec(spec.codec), device, dtype, seed))


def unfilled_codec(spec: WanVaeSpec) -> WanVae | Taehv:
    """The codec on the meta device, both halves, as a checkpoint fills it."""
    with torch.device("meta"):
        return Taehv(spec.channels) if spec.tiny else WanVae(spec)


@torch.no_grad()
def randomise(module: M, device: torch.device, dtype: torch.dtype, seed: int) -> M:
    """A module from the meta device, with weights that keep the scale of what passes through them; none are zero."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, x in module.state_dict().items():
        noise = torch.empty_like(x, device=device, dtype=torch.float32).normal_(generator=generator)
        wide = isinstance(module, MagiDiT) and island(name)
        made[name] = drawn(name, noise).to(torch.float32 if wide else dtype)
    module.load_state_dict(made, assign=True)
    return module.eval().requires_grad_(False)


def drawn(name: str, noise: Tensor) -> Tensor:
    """Norms near one, biases and modulations small, products of the scale of their inputs; rotary bands as trained."""
    if name.endswith("bands"):
        return 10_000.0 ** -(torch.arange(len(noise), device=noise.device) / len(noise))
    if name.endswith("gamma"):
        return 1 + 0.1 * noise
    if noise.ndim == 1:
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("modulation"):
        return 0.3 * noise
    return noise / noise[0].numel() ** 0.5
