"""What benchmarks/magi.py compares: the engine and the published rollout, each making one video's chunks.

Legend: T tokens of a text, w latent frames of a chunk, C h w latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.formulas import magi_decode_flops
from benchmarks.magi_baseline import Baseline, one_by_one
from benchmarks.magi_plan import PEAK, Step, tiles_of
from benchmarks.many_worlds import interleaved, percentiles
from benchmarks.models import random_magi
from benchmarks.wan_contenders import Contender
from benchmarks.wan_parts import clear, memory
from engine import Condition, Engine, Start, World, WorldModel
from engine.codecs.magi_vae import MagiVae
from engine.conditioners.magi_text import NULL_TOKENS
from engine.model import Codec
from engine.models.magi import MagiDiT
from engine.models.magi_guidance import Guided
from engine.published import MagiSpec, MagiVaeSpec, Staggered
from engine.spec import WorldSpec

Row = dict[str, Any]
PROMPT = 60  # tokens of a common prompt


@dataclass(frozen=True)
class Bench:
    """One setting.

    Attributes:
        chunks, rounds: timed chunks of each contender, and turns they take.
        behind: chunks before those, whose K/V the baseline copies.
        baseline: run the baseline too.
    """

    spec: WorldSpec
    codec: str
    device: torch.device
    dtype: torch.dtype
    chunks: int
    rounds: int
    behind: int
    baseline: bool

    @property
    def rollout(self) -> Staggered:
        assert self.spec.staggered is not None
        return self.spec.staggered

    def text(self) -> Tensor:
        """Embeddings [T, D] of a prompt."""
        assert isinstance(self.spec.denoiser, MagiSpec)
        return torch.randn(PROMPT, self.spec.denoiser.text_width, generator=torch.Generator().manual_seed(0))

    @property
    def seconds(self) -> float:
        """Of video, in a chunk."""
        return self.spec.block * self.spec.frames_per_latent / self.spec.fps

    @property
    def denoise_flops(self) -> int:
        return sum(Step.of(self.spec, tokens=PROMPT).total.values())

    @property
    def decode_flops(self) -> int:
        assert isinstance(self.spec.codec, MagiVaeSpec)
        return magi_decode_flops(self.spec.codec, tiles_of(self.spec))


class OurChunks(Contender):
    """The engine, one world."""

    def __init__(self, bench: Bench, model: WorldModel):
        super().__init__(bench.device)
        self.sim = Engine(model, deterministic=False)
        self.context = self.sim.contextualise(text=bench.text())
        self.world: World | None = None
        runner = self.sim.runner
        runner.decode = self._marked(runner.decode)  # type: ignore[method-assign]

    def _marked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.marks.add()
            made = function(*args)
            self.marks.add()
            return made

        return call

    def block(self) -> Tensor:
        if self.world is None:
            self.world = self.sim.open(Start.of(self.context), seed=0)
        rows = np.zeros((self.sim.spec.frames_at(self.world.table.length), 0), np.float32)
        self.marks.add()
        return self.sim.step([self.world], [Condition.of(rows)])[0].pictures


class TheirChunks(Contender):
    """The baseline, one video, its noise drawn on the device."""

    def __init__(self, bench: Bench, model: WorldModel, chunks: int):
        super().__init__(bench.device)
        denoiser, generator = network_of(model), torch.Generator(bench.device).manual_seed(0)
        self.codec: Codec = one_by_one(model.codec) if isinstance(model.codec, MagiVae) else model.codec
        self.base = Baseline(
            denoiser,
            bench.rollout,
            bench.spec.block,
            bench.spec.latent,
            bench.text().to(bench.device),
            denoiser.y_embedder.null_caption_embedding[:NULL_TOKENS],
            lambda _, shape: torch.randn(shape, generator=generator, device=bench.device),
            bench.behind + bench.rollout.window + chunks,
            bench.behind,
        )

    @torch.inference_mode()
    def block(self) -> Tensor:
        self.marks.add()
        latents = self.base.step()
        self.marks.add()
        frames, _ = self.codec.decode(latents[None])
        self.marks.add()
        return frames[0]


def network_of(model: WorldModel) -> MagiDiT:
    """The denoiser itself, without what combines its predictions."""
    assert isinstance(model.denoiser, Guided)
    return model.denoiser.denoiser


def measure(bench: Bench) -> Row:
    """One row: first chunks, then chunks in turns."""
    model = random_magi(bench.spec, bench.codec, bench.device, bench.dtype)
    weights, contenders, row = memory(bench.device), dict[str, Contender](), Row()
    row |= begin(bench, "engine", contenders, OurChunks(bench, model))
    if bench.baseline:
        before = memory(bench.device)
        row |= begin(bench, "baseline", contenders, TheirChunks(bench, model, bench.chunks + 2))
        row["baseline_peak_bytes"] += weights - before  # without what the engine holds
    ways = {name: contender.timed for name, contender in contenders.items()}
    seconds = interleaved(ways, bench.chunks, min(bench.rounds, bench.chunks))
    for name, contender in contenders.items():
        row |= timings(bench, name, contender, seconds[name])
    row |= ratios(row) if bench.baseline else {}
    del ways, contender, contenders, model
    clear()
    return row


def begin(bench: Bench, name: str, contenders: dict[str, Contender], made: Contender) -> Row:
    """Make the first chunk, and one more that is not timed; the most bytes that the device held meanwhile."""
    contenders[name] = made
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    first = made.timed()
    made.timed()
    made.forget()
    peak = torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else 0
    return {f"{name}_first_s": first, f"{name}_peak_bytes": peak}


def timings(bench: Bench, name: str, contender: Contender, seconds: list[float]) -> Row:
    """What one contender's chunks took, in seconds a second of video, and of its parts."""
    denoise, decode = (float(np.median(x)) for x in (contender.denoise, contender.decode))
    whole = float(np.median(seconds))
    return {
        f"{name}_seconds_per_video_second": whole / bench.seconds,
        f"{name}_denoise_per_video_second": denoise / bench.seconds,
        f"{name}_decode_per_video_second": decode / bench.seconds,
        **percentiles(seconds, name),
        f"{name}_denoise_share_of_peak": bench.denoise_flops / denoise / PEAK,
        f"{name}_decode_share_of_peak": bench.decode_flops / decode / PEAK if bench.codec == "vae" else 0.0,
    }


def ratios(row: Row) -> Row:
    """How many times faster the engine is."""
    names = {"end_to_end": "seconds", "denoise": "denoise", "decode": "decode"}
    return {
        f"ratio_{name}": row[f"baseline_{part}_per_video_second"] / row[f"engine_{part}_per_video_second"]
        for name, part in names.items()
    }
