"""Published Wan2.1-family models by name: their full sizes, and models of random weights to measure.

Speed and memory do not depend on what the weights are, as long as nothing in them is zero, huge or not a number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from engine.codecs.preview import Preview
from engine.codecs.taehv import Taehv
from engine.codecs.wan_vae import WanVae
from engine.model import Codec, WorldModel
from engine.models.heads import Silent
from engine.models.wan import WanDiT
from engine.extras import Extras
from engine.opening_wan import world_spec
from engine.presets import Preset
from engine.published import ActionModule, WanSpec, WanVaeSpec
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
        made[name] = drawn(name, noise).to(dtype)
    module.load_state_dict(made, assign=True)
    return module.eval().requires_grad_(False)


def drawn(name: str, noise: Tensor) -> Tensor:
    """Norms near one, biases and modulations small, products of the scale of their inputs."""
    if name.endswith("gamma"):
        return 1 + 0.1 * noise
    if noise.ndim == 1:
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("modulation"):
        return 0.3 * noise
    return noise / noise[0].numel() ** 0.5
