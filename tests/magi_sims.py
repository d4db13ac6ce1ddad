"""Engines of tiny MAGI-1 worlds with random weights in the published layout, and what drives them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import engine
from engine import Block, Condition, Context, Engine, Preset, Start, World
from engine.published import Guidance, MagiSpec, Staggered
from tests.magi_published import SMALL, config_json, magi_weights

_folder = tempfile.TemporaryDirectory(prefix="inferix-magi-")
SIZES = {**SMALL, "layers": 2, "ffn": 96, "kv_heads": 2, "in_channels": 4, "out_channels": 4, "text_tokens": 64}
OWN = ("num_steps", "policy", "max_worlds", "deterministic", "kv_dtype")


@cache
def checkpoint(distill: bool) -> Path:
    """A folder of weights and config json."""
    spec = MagiSpec(**SIZES, distill=distill)
    folder = Path(_folder.name) / ("distill" if distill else "base")
    weights = folder / ("inference_weight" + ".distill" * distill)
    weights.mkdir(parents=True)
    save_file(magi_weights(spec), weights / "model.safetensors")
    (folder / "tiny_config.json").write_text(json.dumps(config_json(spec, num_steps=8, chunk_width=2)))
    return folder


def rollout(distill: bool, **settings: Any) -> Staggered:
    guidance = None if distill else Guidance()
    return replace(Staggered(num_steps=8, window=4, guidance=guidance), **settings)


@cache
def model(distill: bool, settings: tuple[tuple[str, Any], ...]) -> engine.WorldModel:
    chosen = Preset(rollout(distill, **dict(settings)), block=2, size=(32, 48), fps=24.0)
    return engine.load(checkpoint(distill), "cpu", "float32", chosen, codec="preview")


def make_sim(distill: bool = True, **settings: Any) -> Engine:
    """An Engine; settings that are not its own are the rollout's."""
    own = {name: settings.pop(name) for name in OWN if name in settings}
    return Engine(model(distill, tuple(settings.items())), **own)


def prompt(sim: Engine, seed: int = 0, tokens: int = 5) -> Context:
    random = torch.Generator().manual_seed(seed)
    return sim.contextualise(text=torch.randn(tokens, sim.spec.denoiser.text_width, generator=random))


def given(sim: Engine, frames: int, seed: int = 9) -> Tensor:
    """Latents that go before."""
    return torch.randn(frames, *sim.spec.latent, generator=torch.Generator().manual_seed(seed))


def begin(sim: Engine, seed: int = 0, frames: int = 0, horizon: int | None = None) -> World:
    """A world of a seed, with a prompt of the same seed and maybe latents that go before."""
    return sim.open(Start.of(prompt(sim, seed), given(sim, frames) if frames else None, horizon), seed=seed)


def step(sim: Engine, worlds: Sequence[World], prompts: Sequence[Context | None] | None = None) -> list[Block]:
    prompts = prompts or [None] * len(worlds)
    rows = [np.zeros((sim.spec.frames_at(w.table.length), 0), np.float32) for w in worlds]
    return sim.step(list(worlds), [Condition.of(r, prompt=p) for r, p in zip(rows, prompts, strict=True)])


def roll(sim: Engine, world: World, count: int, prompts: dict[int, Context] | None = None) -> list[Tensor]:
    """The clean latents of `count` blocks; `prompts` by how many come before them."""
    made = []
    for i in range(count):
        step(sim, [world], [(prompts or {}).get(i)])
        assert world.latents is not None
        made.append(world.latents.clone())
    return made


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two rollouts agree in every bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
