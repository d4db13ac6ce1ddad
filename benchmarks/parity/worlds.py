"""The worlds of a recorded case, in an engine that a user would have, and what was seen of them on the way.

The case's weights are written as a checkpoint and opened with `engine.load`; worlds get the recorded noise, prompts,
images and actions. Compares nothing.

Legend: B worlds, F latent frames, C H W latent, T pages, S tokens of a frame, h heads, d head width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import engine
from benchmarks.parity.case import Case
from benchmarks.parity.presets import preset_of
from engine import Condition, Context, Engine, GivenNoise, Start, World
from engine.kv.export import export
from engine.kv.policy import PageTable


class Recorder(torch.nn.Module):
    """A denoiser that keeps what it was shown and what it predicted."""

    def __init__(self, denoiser: torch.nn.Module):
        super().__init__()
        self.denoiser, self.calls = denoiser, list[tuple[Tensor, Tensor]]()

    def forward(self, latents: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        prediction, features = self.denoiser(latents, *rest)
        self.calls.append((latents, prediction.float()))
        return prediction, features

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Replay:
    """One case in an engine: B worlds, their blocks, and what a denoiser was asked on the way."""

    def __init__(self, case: Case, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        self.case, self.info = case, case.info
        lora = folder / "lora.safetensors" if case["lora"] else None
        path, alpha = case.write_weights(folder), (case.info.get("lora") or {}).get("alpha")
        self.preset = preset_of(case)
        extras: dict[str, Any] = {"lora": lora, "lora_alpha": alpha} if lora else {}
        model = engine.load(path, device, dtype, self.preset, codec="preview", **extras)
        self.count = self.info["layout"]["batch"]
        self.sim = Engine(model, max_worlds=self.count)
        self.recorder = Recorder(self.sim.runner.model.denoiser)
        self.sim.runner.model = replace(self.sim.runner.model, denoiser=self.recorder)
        self.caches: list[dict[str, Tensor]] = []
        self.rewrites: list[tuple[int, Tensor]] = []
        self.held: dict[int, dict[str, Tensor]] = {}
        self._watch_rewrites()
        self._watch_commits()

    def _watch_rewrites(self) -> None:
        """Keep what a new prompt's pass over the window predicts, and the cache right after it."""
        rewrite = self.sim.runner.rewrite

        def watched(world: World, step: Any) -> None:
            rewrite(world, step)
            if not (made := self.recorder.take()):
                return  # there was no history yet
            self.rewrites.append((world.table.length, made[-1][1]))
            self.caches.append(pages_of(self.sim, world.table, world.table.pages))

        self.sim.runner.rewrite = watched  # type: ignore[method-assign]

    def _watch_commits(self) -> None:
        """Keep what every world held when a block was committed: all that the block saw, and itself."""
        commit = self.sim.runner._commit

        def watched(worlds: list[World], *rest: Any) -> None:
            tables = [world.table.copy() for world in worlds]
            commit(worlds, *rest)  # gives pages back that no later block sees; nothing has overwritten them yet
            for world, table in zip(worlds, tables, strict=True):
                table.positions += range(table.length, world.table.length)
                self.held[id(world)] = pages_of(self.sim, table, table.pages + table.in_flight)

        self.sim.runner._commit = watched  # type: ignore[method-assign]

    @property
    def num_frames(self) -> int:
        """Latent frames of the whole recording, given ones included."""
        made = self.case["out"]["latents"] if "latents" in self.case["out"] else self.case["in"]["x"]
        return self.case.frames_first(made).shape[1]

    @property
    def num_given(self) -> int:
        """Latent frames that the recording begins from."""
        first = self.case["in"].get("initial_latent")
        return 0 if first is None else self.case.frames_first(first).shape[1]

    def contexts(self, name: str = "prompt_embeds") -> list[Context]:
        """The prompt, or the image, of each world."""
        given = self.case["in"]
        if "visual_context" in given:
            beside = self.case.frames_first(given["cond_concat"])
            return [
                self.sim.contextualise(image=x, beside=y) for x, y in zip(given["visual_context"], beside, strict=True)
            ]
        return [self.sim.contextualise(text=x) for x in given[name]]

    def open(self, contexts: list[Context]) -> list[World]:
        """Open the worlds, with their first latents where the case has some."""
        first = self.case["in"].get("initial_latent")
        given = [None] * self.count if first is None else self.case.frames_first(first)
        starts = [Start.of(*pair) for pair in zip(contexts, given, strict=True)]
        return [self.sim.open(s, seed=0, source=self.noise(b)) for b, s in enumerate(starts)]

    def noise(self, b: int) -> GivenNoise:
        """The recorded noise of one world, keyed as the engine draws it; given latents of single calls stand for it."""
        given, latents = self.case["in"], {}
        whole = self.case.frames_first(given["x" if "x" in given else "noise"])[b]
        # Noise covers the frames to be made or, in CausVid's, the given ones too.
        at, skipped = self.num_given, self.num_frames - len(whole)
        while at < self.num_frames:
            block, size = len({block for block, _ in latents}), self.sim.spec.block_at(at)
            latents[block, 0] = whole[at - skipped : at - skipped + size]
            steps = given.get(f"step_noise.block{block}")
            for draw, x in enumerate(() if steps is None else self.case.frames_first(steps), start=2):
                latents[block, draw] = x[b]
            at += size
        return GivenNoise(latents)

    def condition(self, world: World, b: int, prompt: Context | None = None) -> Condition:
        """The recorded actions of a world's next block; none where it has none."""
        spec, length = self.sim.spec, world.table.length
        rows = slice(spec.frames_upto(length), spec.frames_upto(length + spec.block_at(length)))
        module = spec.action_module
        names = [] if module is None else ["keyboard_cond", *(["mouse_cond"] if module.mouse else [])]
        given = [self.case["in"][name][b, rows] for name in names]
        actions = np.concatenate([x.numpy() for x in given], axis=-1) if given else None
        none = np.zeros((spec.frames_at(length), spec.actions.width), np.float32)
        return Condition.of(none if actions is None else actions, prompt)


def pages_of(sim: Engine, table: PageTable, pages: list[int]) -> dict[str, Tensor]:
    """Keys and values of a world's pages, [layers, T, S, h, d] a stream, and which positions they are of."""
    stored = export(sim.pool, pages)
    return {"positions": torch.tensor(table.positions), "origin": torch.tensor(table.origin), **stored}
