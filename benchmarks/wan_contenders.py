"""What benchmarks/wan.py compares: the engine and the published rollout, each making one world's blocks, timed inside.

Legend: F latent frames of a block, C h w latent, T frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import random_model
from benchmarks.step import now
from benchmarks.wan_baseline import Baseline, NoiseOf, OneByOne
from engine import Condition, Engine, Start, World, WorldModel
from engine.codecs.wan_vae import WanVae
from engine.codecs.work import flops as codec_flops
from engine.models.wan import WanDiT, flops
from engine.published import WanSpec, WanVaeSpec
from engine.spec import WorldSpec


@dataclass(frozen=True)
class Bench:
    """One setting.

    Attributes:
        window, sink: of the cache, in latent frames.
        blocks, rounds: timed blocks of each contender, and turns they take.
        baseline: run the baseline too.
        cold: nothing has run in this process yet.
    """

    spec: WorldSpec
    window: int
    sink: int
    codec: str
    device: torch.device
    dtype: torch.dtype
    blocks: int
    rounds: int
    baseline: bool
    cold: bool = False

    def model(self) -> WorldModel:
        """Random weights, on the device."""
        return random_model(self.spec, self.codec, self.device, self.dtype)

    def prompt(self) -> Tensor:
        """Embeddings of a prompt of a common length."""
        sizes = self.denoiser
        made = torch.randn(min(60, sizes.text_tokens), sizes.text_width, generator=torch.Generator().manual_seed(0))
        return made.to(self.device, self.dtype)

    def noise(self) -> NoiseOf:
        """Noise as published: drawn on the device, one draw after the other."""
        generator = torch.Generator(self.device).manual_seed(0)
        return lambda _block, _draw, shape: torch.randn(shape, generator=generator, device=self.device)

    @property
    def denoiser(self) -> WanSpec:
        assert isinstance(self.spec.denoiser, WanSpec)
        return self.spec.denoiser

    @property
    def vae(self) -> WanVaeSpec:
        assert isinstance(self.spec.codec, WanVaeSpec)
        return self.spec.codec

    @property
    def frames(self) -> int:
        """Frames of a block."""
        return self.spec.block * self.spec.frames_per_latent

    @property
    def denoise_flops(self) -> int:
        """Operations of a block's passes at a full window."""
        assert self.spec.rollout is not None
        one = flops(self.denoiser, self.spec.stream.tokens, self.spec.block, self.window - self.spec.block)
        return (len(self.spec.rollout.steps) + 1) * one

    @property
    def decode_flops(self) -> int:
        return codec_flops(self.vae, *self.spec.frame, frames=self.spec.block)


@dataclass
class Marks:
    """Moments on the device: events where it has them, the clock elsewhere."""

    device: torch.device
    made: list[Any] = field(default_factory=list)

    def add(self) -> None:
        """Note that everything asked for so far is done then."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.made.append(event)
        else:
            self.made.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds between one mark and the next; the device has to be idle. Forgets them."""
        pairs = list(zip(self.made, self.made[1:], strict=False))
        self.made = []
        return [a.elapsed_time(b) / 1e3 if self.device.type == "cuda" else b - a for a, b in pairs]


class Contender:
    """Makes blocks one after another, and keeps how long each took, denoising and decoding apart."""

    def __init__(self, device: torch.device):
        self.marks = Marks(device)
        self.denoise: list[float] = []
        self.decode: list[float] = []

    def block(self) -> Tensor:
        """The frames of the next block, on the device; marks before, between and after."""
        raise NotImplementedError

    def timed(self) -> float:
        """Seconds of a block, its frames on the host."""
        started = now()
        self.block().cpu()
        seconds = now() - started
        denoise, decode = self.marks.seconds()
        self.denoise.append(denoise)
        self.decode.append(decode)
        return seconds

    def forget(self) -> None:
        self.denoise, self.decode = [], []


class OurBlocks(Contender):
    """The engine, one world.

    Args:
        deterministic: as the engine takes it: histories are padded to the window, from the first block on.
    """

    def __init__(self, bench: Bench, model: WorldModel, deterministic: bool = False):
        super().__init__(bench.device)
        self.sim = Engine(model, deterministic=deterministic)
        self.world: World | None = None
        self.text = bench.prompt()
        self.context = self.sim.contextualise(text=self.text)
        runner = self.sim.runner
        runner.run = self._marked(runner.run, first=True)  # type: ignore[method-assign]
        runner.decode = self._marked(runner.decode)  # type: ignore[method-assign]

    def _marked(self, function: Callable[..., Any], first: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if first:
                self.marks.add()
            made = function(*args, **options)
            self.marks.add()
            return made

        return call

    def open(self) -> None:
        """A new world under the prompt."""
        if self.world is not None:
            self.sim.close(self.world)
        self.world = self.sim.open(Start.of(self.context), seed=0)

    def block(self) -> Tensor:
        if self.world is None:
            self.open()
        assert self.world is not None
        rows = np.zeros((self.sim.spec.frames_at(self.world.table.length), 0), np.float32)
        return self.sim.step([self.world], [Condition.of(rows)])[0].pictures


class TheirBlocks(Contender):
    """The baseline, one world."""

    def __init__(self, bench: Bench, model: WorldModel):
        super().__init__(bench.device)
        self.bench, self.model = bench, model
        self.open()

    def open(self) -> None:
        bench, denoiser = self.bench, self.model.denoiser
        assert isinstance(denoiser, WanDiT)
        rollout = bench.spec.rollout
        assert rollout is not None
        self.base = Baseline(denoiser, rollout, bench.window, bench.sink, bench.prompt(), bench.noise())
        self.codec = baseline_codec(self.model)

    @torch.inference_mode()
    def block(self) -> Tensor:
        self.marks.add()
        latents = self.base.step(self.bench.spec.block, self.bench.spec.latent)
        self.marks.add()
        frames = self.codec(latents)
        self.marks.add()
        return frames


def baseline_codec(model: WorldModel) -> Callable[[Tensor], Tensor]:
    """Latents -> frames, streaming: the published VAE one latent at a time; the tiny one as it is."""
    if isinstance(model.codec, WanVae):
        return OneByOne(model.codec).decode
    return partial(streaming, model, [None])


def streaming(model: WorldModel, states: list[Any], latents: Tensor) -> Tensor:
    """Decode with the model's own codec; `states` moves on."""
    frames, left = model.codec.decode(latents, states)
    states[:] = left or [None]
    assert isinstance(frames, Tensor)
    return frames
