"""Recorded rollouts of MAGI-1, replayed by the engine: every pass, its times and ranges, and every finished chunk.

Worlds never stop making chunks, a recording does: behind its last one they get zeros for noise, which no chunk before
sees, and what they make of them is left out.

Legend: c chunks in flight, w latent frames of one, C T H W latents of the file, [F, C, H, W] of the engine.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.case import Case
from benchmarks.parity.magi import assembly_of, load
from benchmarks.parity.magi_formulas import interval
from engine import Condition, Context, Engine, GivenNoise, Start, World
from engine.published import Staggered
from engine.schedule import Pass
from engine.stages import times


@dataclass(frozen=True)
class Call:
    """What the denoiser was asked in one pass, and what it answered.

    Attributes:
        shown, velocity: [c w, C, H, W].
        levels: time of each chunk.
        first: latent frame at which the chunks begin.
        reach: chunks that each of them sees, itself among them; None for all.
        prompted: whether each of them reads a prompt.
        step_size: as told.
    """

    shown: Tensor
    velocity: Tensor
    levels: tuple[float, ...]
    first: int
    reach: tuple[int | None, ...]
    prompted: tuple[bool, ...]
    step_size: float | None

    @property
    def lead(self) -> int:
        """Finished chunks in front: 1 where there is one."""
        return int(not self.prompted[0])


class Recorder(torch.nn.Module):
    """A guided denoiser that keeps its calls, of a single world."""

    def __init__(self, denoiser: torch.nn.Module, width: int):
        super().__init__()
        self.denoiser, self.width, self.calls = denoiser, width, list[Call]()

    def forward(self, latents: Tensor, times: Tensor, positions: Tensor, told: Condition, view: Any) -> Any:
        velocity, features = self.denoiser(latents, times, positions, told, view)
        levels, reach = tuple(times[0, :: self.width].tolist()), tuple(view.reach)
        prompted = tuple(context is not None for context in told.chunks[0])
        call = Call(latents[0], velocity[0], levels, int(positions[0, 0]), reach, prompted, told.step_size)
        self.calls.append(call)
        return velocity, features

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Replay:
    """One recording in an engine."""

    def __init__(self, case: Case, folder: Path, device: str):
        self.case = case
        self.noise = frames_first(case["in"]["noise"])
        model = load(case, folder, device, (self.noise.shape[2], self.noise.shape[3]))
        self.sim, self.text = Engine(model), assembly_of(model)
        assert model.spec.staggered is not None
        self.rollout: Staggered = model.spec.staggered
        self.width, self.count = model.spec.block, case.info["chunk_num"]
        given = case["in"].get("prefix_latents")
        self.given = None if given is None else frames_first(given)
        self.known = 0 if self.given is None else len(self.given)
        self.offset = self.known // self.width  # whole chunks that were given
        self.recorder = Recorder(self.sim.runner.model.denoiser, self.width)
        self.sim.runner.model = replace(self.sim.runner.model, denoiser=self.recorder)

    @property
    def made(self) -> int:
        """Chunks that the recording makes."""
        return self.count - self.offset

    @property
    def unseen(self) -> int:
        """Latent frames of the first chunk that the recording leaves out: a video's end, but not a picture."""
        return 0 if self.known <= 1 else self.known - self.offset * self.width

    def context(self) -> Context:
        """The caption as chunks read it, those at the end of the video too."""
        given = self.case["in"]
        caption = given["caption_embs"][0, 0][given["caption_mask"][0] > 0].float()
        whole, *ending = (
            self.sim.contextualise(text=self.text.prompt(caption, left))
            for left in (None, *range(1, self.text.endings + 1))
        )
        return replace(whole, ending=tuple(ending))

    def open(self) -> World:
        """A world of the recorded noise, after the recorded prefix."""
        size = (self.width, *self.sim.spec.latent)
        blocks = {(k, 0): torch.zeros(size) for k in range(self.made, self.made + self.rollout.window + 1)}
        for k in range(self.made):
            at = (self.offset + k) * self.width
            blocks[k, 0] = self.noise[at : at + self.width]
        start = Start.of(self.context(), self.given, horizon=self.made)
        return self.sim.open(start, seed=0, source=GivenNoise(blocks))

    def step(self, world: World) -> tuple[list[tuple[Pass, Call]], Tensor]:
        """Make the next chunk: the passes with what they asked, and the chunk [w, C, H, W]."""
        passes = [p for leg in self.sim.schedule(world) for p in leg.passes]
        none = np.zeros((self.sim.spec.frames_at(world.table.length), 0), np.float32)
        self.sim.step([world], [Condition.of(none)])
        assert world.latents is not None
        return list(zip(passes, self.recorder.take(), strict=True)), world.latents[-self.width :]


def replay(case: Case, device: str = "cpu") -> None:
    """Replay a rollout, and compare every pass and every chunk."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        run = Replay(case, Path(folder), device)
        case.compare("ts", times(run.rollout))
        world = run.open()
        entries = prefix_entries(run, run.recorder.take())
        made, finished, iteration = list[Tensor](), list[dict[str, Any]](), 0
        for k in range(run.made):
            passes, chunk = run.step(world)
            for one, call in passes:
                entries.append(entry(run, call, iteration))
                compare_trace(run, one, call, iteration)
                iteration += 1
            shown = chunk[run.unseen :] if k == 0 else chunk
            case.compare(f"chunk.{k}", channels_first(shown))
            told = {"order": k, "chunk_idx": k, "finished_after_iteration": iteration - 1, "latents": len(shown)}
            finished.append(told)
            made.append(chunk)
        case.compare_table("schedule", entries)
        case.compare_table("chunks", finished)
        compare_whole(run, torch.cat(made))


def prefix_entries(run: Replay, calls: list[Call]) -> list[dict[str, Any]]:
    """The passes over what was given, which the recording made in one."""
    if not calls:
        return []
    rows = [entry(run, call, 0) for call in calls]
    joined = {name: [x for row in rows for x in row[name]] for name in ("t", "kv_range_chunks")}
    told = {"leading_clean_chunk": False, "near_clean": False, "prefix_pass": True}
    kept = {name: rows[0][name] for name in ("slice_point", "distill_interval")}
    return [{**kept, **joined, **told}]


def entry(run: Replay, call: Call, iteration: int) -> dict[str, Any]:
    """A row of the recorded schedule: of one pass, without the chunks that the recording has not."""
    first = call.first // run.width
    places = range(first, min(first + len(call.levels), run.count))
    ranges = [[0 if r is None else max(0, i + 1 - r), i + 1] for i, r in zip(places, call.reach, strict=False)]
    steps = run.rollout.num_steps // run.rollout.window
    oldest = call.levels[call.lead] if len(call.levels) > call.lead else 0.0
    return {
        "slice_point": first,
        "t": list(call.levels[: len(places)]),
        "kv_range_chunks": ranges,
        "leading_clean_chunk": bool(call.lead),
        "near_clean": oldest > run.rollout.near_clean,
        "distill_interval": interval(run.rollout, iteration % steps),
        "iteration": iteration,
    }


def compare_trace(run: Replay, one: Pass, call: Call, iteration: int) -> None:
    """Compare what the unfinished chunks of the recording were, the velocity, and what the step makes of them."""
    assert one.update is not None
    after = one.update(call.shown[None], call.velocity[None].float())[0]
    made = {"x_before": call.shown, "velocity": call.velocity, "x_after": after}
    for name, x in made.items():
        key = f"trace.{iteration}.{name}"
        if (want := run.case["out"].get(key)) is not None:
            begin = call.lead * run.width
            run.case.compare(key, channels_first(x[begin : begin + want.shape[2]]))


def compare_whole(run: Replay, made: Tensor) -> None:
    """Compare all chunks [F, C, H, W] together, and the sampler's buffer."""
    case = run.case
    case.compare("latents", channels_first(made[run.unseen :]))
    want = case["out"].get("state_final")
    if want is not None:
        begin = run.offset * run.width
        note = "from the first block on: noise is left where chunks were given" if begin else ""
        case.compare("state_final", channels_first(made), want[:, :, begin:], note)


def frames_first(x: Tensor) -> Tensor:
    """[1, C, T, H, W] -> [T, C, H, W]."""
    return x[0].transpose(0, 1)


def channels_first(x: Tensor) -> Tensor:
    """[F, C, H, W] -> [1, C, F, H, W]."""
    return x.transpose(0, 1)[None]
