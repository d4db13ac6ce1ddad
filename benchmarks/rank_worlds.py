"""Worlds of random weights for measuring several ranks: small ones for a CPU, published ones by their presets.

All begin with a full window, so that every step after the first few is the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.models import random_magi, random_model
from benchmarks.plan_ranks import world_of
from engine.codecs.preview import Preview
from engine.conditioning import Condition
from engine.engine import Engine
from engine.extras import Extras
from engine.model import WorldModel
from engine.opening_magi import world_spec as magi_world_spec
from engine.opening_wan import world_spec
from engine.presets import Preset, preset
from engine.published import MagiSpec, Staggered, WanSpec
from engine.spec import KVPolicy, WorldSpec
from engine.world import Start, World

SIZE = (96, 160)  # pixels of the small worlds: 60 tokens a latent frame
WAN = WanSpec(width=128, ffn=512, heads=4, layers=2, frequencies=64, text_width=64, text_tokens=16)
MAGI = MagiSpec(
    width=128, ffn=256, layers=2, heads=8, kv_heads=2, head_width=16, condition_width=64, text_width=64, text_tokens=16,
    distill=True,
)  # fmt: skip
PROMPT = 12  # tokens


@dataclass(frozen=True)
class Case:
    """A world to measure."""

    name: str
    spec: WorldSpec

    def model(self, device: torch.device, dtype: torch.dtype) -> WorldModel:
        """The same weights on every rank, and a codec that costs nothing."""
        make = random_magi if self.spec.staggered else random_model
        return make(self.spec, "preview", device, dtype)

    def begin(self, sim: Engine) -> World:
        """A world with a full window."""
        spec, generator = self.spec, torch.Generator().manual_seed(0)
        width = spec.denoiser.text_width  # type: ignore[union-attr]
        context = sim.contextualise(text=torch.randn(PROMPT, width, generator=generator))
        span = spec.kv.span or 0
        latents = torch.randn(-(-span // spec.block) * spec.block, *spec.latent, generator=generator)
        return sim.open(Start.of(context, latents), seed=0)


def step(sim: Engine, world: World) -> None:
    """Make one block."""
    sim.step([world], [Condition.of(np.zeros((sim.spec.frames_at(world.table.length), 0), np.float32))])


def case_of(name: str) -> Case:
    """A world by its name: short, long or grouped, small ones; or a preset of text, at full size.

    Raises:
        ValueError: there is none of that name, or it is no world of prompts with a window.
    """
    small = {"short": lambda: wan(3), "long": lambda: wan(39), "grouped": grouped}
    if name in small:
        return Case(name, small[name]())
    spec = world_of(name)
    if not hasattr(spec.denoiser, "text_width") or spec.action_module or spec.kv.window is None:
        raise ValueError(
            f"{name!r} reads no prompts or has no window: expected short, long, grouped, or another preset"
        )
    return Case(name, spec)


def wan(history: int) -> WorldSpec:
    """Wan2.1's denoiser, small, with so many latent frames behind a block of three."""
    spec = world_spec("small", WAN, replace(preset("self-forcing"), size=SIZE), Extras(codec="preview"))
    return replace(spec, kv=KVPolicy(history))


def grouped() -> WorldSpec:
    """MAGI-1's denoiser, small: four heads of queries to each of keys, two blocks of two in flight."""
    chosen = Preset(Staggered(num_steps=8, window=2), block=2, size=SIZE, fps=24.0)
    return magi_world_spec("grouped", MAGI, chosen, Preview(causal=False), Extras(codec="preview"))
