"""Engines of the tiny world, footage to open worlds with, actions to step them by, and a world without a cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from engine import Block, Condition, Engine, Start, World
from engine.kv.view import CausalView
from engine.loading import assemble
from engine.noise import SeededNoise
from engine.schedule import mix
from tests.worlds import TINY, make_modules

FORWARD = ("num_steps", "policy", "max_worlds", "deterministic", "kv_dtype", "offload")


def make_engine(dtype: torch.dtype = torch.float32, seed: int = 0, **settings) -> Engine:
    """An Engine; settings that are not its own replace fields of the spec."""
    own = {name: settings.pop(name) for name in FORWARD if name in settings}
    spec = replace(TINY, **settings)
    return Engine(assemble(spec, make_modules(spec, seed), "cpu", dtype), **own)


def footage(count: int, seed: int = 0) -> Start:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    actions = np.eye(3, dtype=np.float32)[rng.integers(0, 3, count)]
    return Start(frames, actions, rng.uniform(20, 100, (count, 1)))


def act(*indices: int, block: int = 1) -> list[Condition]:
    return [Condition.of(np.eye(3, dtype=np.float32)[[i] * block]) for i in indices]


def roll(sim: Engine, world: World, count: int, seed: int = 1) -> list[Block]:
    """`count` steps under random actions."""
    actions = np.random.default_rng(seed).integers(0, 3, count)
    return [sim.step([world], act(int(a), block=sim.spec.block))[0] for a in actions]


def identical(first: list[Block], second: list[Block]) -> bool:
    """Whether two rollouts agree in every bit."""
    return len(first) == len(second) and all(
        np.array_equal(a.frames, b.frames)
        and (a.reward, a.end_probability, a.terminated) == (b.reward, b.end_probability, b.terminated)
        and np.array_equal(a.variables, b.variables)
        and np.array_equal(a.expected, b.expected)
        for a, b in zip(first, second, strict=True)
    )


def check_pages(sim: Engine, worlds: list[World]) -> None:
    """Every page is held by just the worlds that have it in their tables, and no page in flight is left behind."""
    pool = sim.pool
    counts = np.concatenate([pool.shelf.counts, pool.host.counts])
    rows = np.array([pool.row(page) for world in worlds for page in world.table.pages], np.int64)
    held = np.bincount(rows, minlength=len(counts))
    assert np.array_equal(counts, held)
    assert pool.reserved == len(worlds) * sim.need
    assert pool.host_reserved == len(worlds) * sim.need_host
    assert all(len(set(world.table.pages)) == len(world.table.pages) for world in worlds)
    assert not any(world.table.in_flight for world in worlds)


class FailsAtItsSecondCall(torch.nn.Module):
    """A denoiser that runs out of memory in its second pass."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.calls = denoiser, 0

    def forward(self, *arguments):
        self.calls += 1
        if self.calls == 2:
            raise MemoryError("no memory")
        return self.denoiser(*arguments)


class Uncached:
    """A world with its whole history recomputed for every pass: slow, plain, no pool. One latent frame a block.

    Its `variables` are what a test appends after each step: the heads, which draw them, are not run here.
    """

    def __init__(self, sim: Engine, seen: Start, seed: int):
        self.sim, self.spec = sim, sim.spec
        self.seed, self.block = seed, 0
        with torch.inference_mode():
            self.latents = list(sim.model.codec.encode(torch.from_numpy(seen.frames)[None])[0][0])
        self.actions = [torch.from_numpy(row) for row in seen.actions]
        self.variables = [seen.variables[0], *seen.variables]
        self.noises = [self._draw(-1 - k, 1) for k in range(len(self.latents))]

    @torch.inference_mode()
    def step(self, condition: Condition) -> torch.Tensor:
        """Dream the next block; its clean latents [1, C, h, w]."""
        self.actions.append(condition.actions[0])
        past, x = self._past(), self._draw(self.block, 0)
        for step in self.sim.passes:
            if step.update:
                prediction, _ = self._run([*past, x], step.level, self._view())
                x = step.update(x, prediction[0, -1])
        self.latents.append(x)
        self.noises.append(self._draw(self.block, len(self.sim.passes)))
        self.block += 1
        return x[None]

    @torch.inference_mode()
    def history(self) -> tuple[dict[int, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """One pass over all that was committed: keys and values by layer [1, K S, h, d], and features."""
        view = self._view()
        _, features = self._run(self._past(), self.spec.context_noise, view)
        return {layer: made for (_, layer), made in view.recorded.items()}, features

    def _past(self) -> list[torch.Tensor]:
        """The history as the cache was shown it."""
        return [mix(z, e, self.spec.context_noise) for z, e in zip(self.latents, self.noises, strict=True)]

    def _view(self) -> CausalView:
        return CausalView(self.sim.policy, self.spec.stream.tokens)

    def _run(self, shown: list[torch.Tensor], level: float, view: CausalView) -> tuple[torch.Tensor, torch.Tensor]:
        """A pass over latents from the first on, of which the last has a noise level of its own."""
        times = torch.full((1, len(shown)), self.spec.context_noise)
        times[:, -1] = level
        rows = self.spec.encode_variables(np.stack(self.variables[: len(shown)]).astype(np.float64))
        condition = Condition(torch.stack(self.actions)[None], torch.from_numpy(rows)[None])
        positions = torch.arange(len(shown))[None]
        return self.sim.model.denoiser(torch.stack(shown)[None], times, positions, condition, view)

    def _draw(self, block: int, draw: int) -> torch.Tensor:
        return SeededNoise(self.seed).latent(block, draw, (1, *self.spec.latent))[0]
