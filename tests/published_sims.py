"""Engines of tiny published worlds, what steers them, and rollouts written out with plain lists to compare with.

Weights are written as published files (tests/published.py) and opened with `engine.load`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import engine
from engine import Condition, Context, Engine, Preset, Rollout, Start, World
from engine.codecs.wan_vae import WanVae
from engine.kv.view import Group
from engine.noise import SeededNoise
from engine.published import WanVaeSpec
from engine.schedule import sigma_at, timesteps
from tests import published as p

SIZE = (32, 48)
STEPS = (1000, 500)
TINY_VAE = WanVaeSpec(channels=16, width=4, multiples=(1, 2, 2, 2), depth=1)
# As in the real ones, what a world gives to an elementwise function fills whole vectors: else their tails, which are
# computed by other means, would fall on other elements in a batch.
TEXT = replace(p.TINY_T2V, width=64, ffn=128)
SPECS = {"text": TEXT, "game": replace(p.TINY_ACTIONS, width=64, ffn=128)}
OWN = ("max_worlds", "deterministic", "kv_dtype", "offload", "policy")
_folder = tempfile.TemporaryDirectory(prefix="published")


@cache
def checkpoint(kind: str = "text") -> Path:
    """A file of a "text" world, or of a Matrix-Game "game"; a tiny Wan2.1_VAE.pth lies beside it."""
    folder = Path(_folder.name)
    p.write_torch(folder / "Wan2.1_VAE.pth", tiny_vae().state_dict())
    return p.write_safetensors(folder / f"{kind}.safetensors", p.prefixed(p.tiny_wan_tensors(SPECS[kind])))


def tiny_vae() -> WanVae:
    """Random weights; at unit statistics, so that frames are not all black or white."""
    torch.manual_seed(0)
    vae = WanVae(TINY_VAE)
    for name, x in vae.named_parameters():
        x.data = 1 + 0.3 * torch.randn_like(x) if name.endswith("gamma") else x.data
    return vae.eval()


def preset(kind: str = "text", window: int | None = 6, sink: int = 1, block: int = 3, **rollout: Any) -> Preset:
    """A preset of few steps and small sizes; `rollout`: fields of a Rollout."""
    return Preset(
        Rollout(**{"steps": STEPS, **rollout}),
        window=window,
        sink=sink,
        block=block,
        size=SIZE,
        mode="universal" if kind == "game" else "",
        head_width=TEXT.head_width,
        text_tokens=TEXT.text_tokens,
    )


@cache
def model(kind: str, chosen: Preset, codec: str, dtype: str, numerics: str) -> engine.WorldModel:
    return engine.load(checkpoint(kind), "cpu", dtype, chosen, codec=codec, numerics=numerics)


def make_sim(
    kind: str = "text",
    codec: str = "preview",
    dtype: str = "float32",
    numerics: str = "published",
    **settings: Any,
) -> Engine:
    """An Engine of a tiny published world. Settings that are not an Engine's are `preset`'s."""
    own = {name: settings.pop(name) for name in OWN if name in settings}
    return Engine(model(kind, preset(kind, **settings), codec, dtype, numerics), **own)


def prompt(sim: Engine, seed: int = 0, tokens: int = 5) -> Context:
    """A context: of a text world a prompt, of a game a picture."""
    generator = torch.Generator().manual_seed(seed)
    sizes = sim.spec.denoiser
    if sim.spec.action_module is None:
        return sim.contextualise(text=torch.randn(tokens, sizes.text_width, generator=generator))
    image = torch.randn(sizes.image_tokens, sizes.image_width, generator=generator)
    beside = torch.randn(5, 20, *sim.spec.latent[1:], generator=generator)
    beside[:, :4] = 0
    beside[0, :4] = 1
    return sim.contextualise(image=image, beside=beside)


def begin(sim: Engine, seed: int = 0, context: Context | None = None, latents: Tensor | None = None) -> World:
    """A world of a seed, with a context of the same seed."""
    return sim.open(Start.of(prompt(sim, seed) if context is None else context, latents), seed=seed)


def act(sim: Engine, world: World, seed: int = 0, prompt: Context | None = None) -> Condition:
    """The condition of a world's next block: random keys and mouse where it has such, drawn by seed and position."""
    length = world.table.length
    rng = np.random.default_rng([seed, length])
    rows = rng.uniform(-1, 1, (sim.spec.frames_at(length), sim.spec.actions.width)).astype(np.float32)
    return Condition.of(rows, prompt)


@dataclass(frozen=True)
class Made:
    """One block: frames uint8 [T, H, W, 3] and clean latents [F, C, h, w]."""

    frames: np.ndarray
    latents: Tensor


def step(sim: Engine, worlds: list[World], conditions: list[Condition]) -> list[Made]:
    counts = [sim.spec.block_at(w.table.length) for w in worlds]
    blocks = sim.step(worlds, conditions)
    return [Made(b.frames, w.latents[-c:].clone()) for b, w, c in zip(blocks, worlds, counts, strict=True)]


def roll(
    sim: Engine, world: World, count: int, seed: int = 0, prompts: Mapping[int, Context] | None = None
) -> list[Made]:
    """`count` blocks of one world; `prompts`: by how many blocks of this rollout come before them."""
    prompts = prompts or {}
    return [step(sim, [world], [act(sim, world, seed, prompts.get(i))])[0] for i in range(count)]


def identical(first: list[Made], second: list[Made]) -> bool:
    """Whether two rollouts agree in every bit."""
    return len(first) == len(second) and all(
        np.array_equal(a.frames, b.frames) and torch.equal(a.latents, b.latents)
        for a, b in zip(first, second, strict=True)
    )


def apart(first: list[Made], second: list[Made]) -> float:
    """The largest difference of two rollouts' latents."""
    return max(float((a.latents - b.latents).abs().max()) for a, b in zip(first, second, strict=True))


class PlainCache:
    """Histories as published for LongLive: slots in plain lists, sinks first, then the last frames, oldest first.

    Args:
        window: slots, those of the block included.
        relative: keys are kept as they are and turned by their slots.
    """

    def __init__(self, tokens: int, window: int | None, sink: int, relative: bool):
        self.tokens, self.window, self.sink, self.relative = tokens, window, sink, relative
        self.slots: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.made: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.rewriting = self.keep_sink = False

    def layer(self, index: int, stream: str = "self") -> PlainLayer:
        return PlainLayer(self, index)

    def held(self, index: int, frames: int) -> list[tuple[Tensor, Tensor]]:
        """What stays in the slots beside so many new frames."""
        slots = self.slots.get(index, [])
        if self.rewriting:
            return slots[: self.sink] if self.keep_sink else []
        extra = 0 if self.window is None else max(0, len(slots) + frames - self.window)
        return slots[: self.sink] + slots[self.sink + extra :]

    def commit(self) -> None:
        self.slots = self.made
        self.made = {}


class PlainLayer:
    """One layer of a PlainCache."""

    def __init__(self, cache: PlainCache, index: int):
        self.cache, self.index = cache, index

    def extend(self, q, k, v, turn=None) -> list[Group]:
        cache = self.cache
        own = [turn(k) if turn and not cache.relative else k, v]
        new = list(zip(*(x.split(cache.tokens, dim=1) for x in own), strict=True))
        skip = cache.sink if cache.rewriting and cache.keep_sink else 0
        seen = cache.held(self.index, len(new)) + new[skip:]
        cache.made[self.index] = seen
        keys, values = (torch.cat(x, dim=1) for x in zip(*seen, strict=True))
        if turn and cache.relative:
            keys = turn(keys, torch.arange(len(seen))[None])
        return [Group(slice(None), keys, values)]


class PlainRollout:
    """A text world of the engine's model, seed and noise, without pool, pages or policies. Slow and plain."""

    def __init__(self, sim: Engine, seed: int, context: Context):
        self.sim, self.rollout, self.seed, self.context = sim, sim.spec.rollout, seed, context
        policy = sim.policy
        self.window = None if policy.window is None else policy.window + policy.sink + sim.spec.block
        self.cache = PlainCache(sim.spec.stream.tokens, self.window, policy.sink, self.rollout.relative)
        self.latents, self.block = torch.zeros(0, *sim.spec.latent), 0

    @torch.inference_mode()
    def step(self, prompt: Context | None = None) -> Tensor:
        """The next block's clean latents [F, C, h, w]."""
        if prompt is not None:
            self.context = prompt
            self.rewrite()
        frames = self.sim.spec.block_at(len(self.latents))
        x = self.draw(0, frames)
        told = timesteps(self.rollout)
        for i, t in enumerate(told):
            if i:
                sigma = sigma_at(t, self.rollout)
                x = (1 - sigma) * x + sigma * self.draw(i + 1, frames)
            x = x - sigma_at(t, self.rollout) * self.flow(x, t, len(self.latents))
        self.flow(x, self.rollout.context, len(self.latents))
        self.cache.commit()
        self.latents, self.block = torch.cat([self.latents, x]), self.block + 1
        return x

    def rewrite(self) -> None:
        """The last clean latents once more, all seeing each other."""
        if not len(self.latents) or not self.rollout.rewrite:
            return
        last = self.latents if self.window is None else self.latents[-self.window :]
        start = len(self.latents) - len(last)
        self.cache.rewriting, self.cache.keep_sink = True, self.rollout.rewrite == "window" and start > 0
        self.flow(last, self.rollout.context, start)
        self.cache.commit()
        self.cache.rewriting = False

    def flow(self, latents: Tensor, level: float, start: int) -> Tensor:
        """The prediction for frames [F, C, h, w] from position `start` on."""
        count = len(latents)
        if self.rollout.relative:
            held = len(self.cache.held(0, count))
            start = held - (self.cache.sink if self.cache.rewriting and self.cache.keep_sink else 0)
        none = torch.zeros(1, count, 0)
        condition = Condition(none, none, Context.stack([self.context]))
        made, _ = self.sim.given.denoiser(
            latents[None],
            torch.full((1, count), level),
            torch.arange(start, start + count)[None],
            condition,
            self.cache,
        )
        return made[0].float()

    def draw(self, draw: int, frames: int) -> Tensor:
        return SeededNoise(self.seed).latent(self.block, draw, (frames, *self.sim.spec.latent))
