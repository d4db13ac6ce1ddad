"""From a prompt or a picture to where a published world begins: embeddings, image latents, first latents.

Legend: K latent frames, C h w latent, H W pixels, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.codecs.magi_vae import MagiVae
from engine.codecs.wan_vae import WanVae
from engine.conditioners.image import fit_image, read_image
from engine.conditioning import Context
from engine.engine import Engine
from engine.parallel.tiles import alone
from engine.world import Start

# Latent frames after which the VAE's encoding of a picture followed by grey no longer changes (it looks back so far).
SETTLED = 32

Picture = str | Path | np.ndarray | Image.Image


def prompt_context(sim: Engine, prompt: str, ending: bool = False) -> Context:
    """A prompt as the layers of a text world read it.

    Args:
        ending: with what the last blocks read of it, for worlds that begin with a horizon.

    Raises:
        ValueError: the world reads no prompts, or its text encoder is missing.
    """
    conditioner = sim.given.conditioner
    if conditioner is None or not conditioner.reads_text:
        raise ValueError("this world reads no prompts")
    context = sim.contextualise(text=conditioner.prompt(prompt))
    if not ending:
        return context
    last = (sim.contextualise(text=conditioner.prompt(prompt, left)) for left in range(1, conditioner.endings))
    return replace(context, ending=tuple(last))


def scene(
    sim: Engine, prompt: str | None = None, image: Picture | None = None, frames: np.ndarray | None = None
) -> Start:
    """Where a published world begins.

    Args:
        prompt: of a text world.
        image: a picture: a Matrix-Game world is a walk through it; a text world that takes a first latent begins with
            it. A path, a PIL picture or uint8 [H, W, 3]; cut and resized to the world's frame.
        frames: a video uint8 [T, H, W, 3] that a text world goes on with, in its size and frame rate.

    Raises:
        ValueError: one is missing or too much, or the picture cannot be read.
    """
    module = sim.spec.action_module
    if module is not None:
        if prompt is not None:
            raise ValueError("this world is steered by keys, from a picture: it reads no prompt")
        if image is None:
            raise ValueError("this world begins from a picture: give image")
        return Start.of(picture_context(sim, picture_of(sim, image)))
    if prompt is None:
        raise ValueError("this world begins from a prompt: give one")
    if frames is not None:
        if image is not None:
            raise ValueError("a world begins with a picture or with frames: give one of them")
        return replace(Start.of(prompt_context(sim, prompt)), frames=np.asarray(frames))
    first = None if image is None else first_latents(sim, picture_of(sim, image))
    return Start.of(prompt_context(sim, prompt), first)


def picture_of(sim: Engine, image: Picture) -> Tensor:
    """A picture [3, H, W] in [-1, 1], in the world's size."""
    opened = read_image(image) if isinstance(image, str | Path) else image
    return fit_image(opened, *sim.spec.frame)


@torch.inference_mode()
def first_latents(sim: Engine, picture: Tensor) -> Tensor:
    """The latents [1, C, h, w] of a video that is this one picture so far."""
    return encode(sim, picture[None])[0]


@torch.inference_mode()
def picture_context(sim: Engine, picture: Tensor) -> Context:
    """A picture as a Matrix-Game reads it: CLIP tokens, and beside every latent a mask and the picture's latents.

    The mask's four channels are 1 beside the first latent; the latents are those of a clip that begins with the picture
    and goes on in grey.
    """
    conditioner = sim.given.conditioner
    assert conditioner is not None
    frames = 1 + sim.spec.frames_per_latent * (SETTLED - 1)
    clip = torch.zeros(frames, *picture.shape)
    clip[0] = picture
    latents = encode(sim, clip)[0]
    mask = latents.new_zeros(len(latents), 4, *latents.shape[2:])
    mask[0] = 1
    return sim.contextualise(image=conditioner.picture(picture), beside=torch.cat([mask, latents], dim=1))


def encode(sim: Engine, clip: Tensor) -> Tensor:
    """Latents [1, K, C, h, w] of a clip [T, 3, H, W] in [-1, 1].

    Raises:
        ValueError: the world was opened without its VAE.
    """
    codec = alone(sim.given.codec)  # one rank encodes, without the others
    if not isinstance(codec, WanVae | MagiVae):
        raise ValueError("pictures need the codec that the model was trained with: open the world with codec='vae'")
    made, _ = codec.encode_signal(clip[None].to(sim.given.device))
    assert isinstance(made, Tensor)
    return made
