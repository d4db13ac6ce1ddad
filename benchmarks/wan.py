"""python -m benchmarks.wan: how fast a published Wan2.1-family model runs, beside what the published code does.

Full-size random weights, made on the device; one world. The engine and a baseline (wan_baseline.py, the published
rollout on the same weights) take turns in one process, both in steady state, their windows full. Parts:

    first    milliseconds from nothing to the first block's frames on the host, cold (the process's first) and warm
    blocks   milliseconds a block with each window and codec, end to end and its denoising alone; frames a second;
             operations a second by formula, and their share of 989 TF/s; peak memory; ratios to the baseline
    codec    milliseconds to decode a block of latents, alone, by each codec; the same share
    compile  the engine alone, with its chains of elementwise operations fused by torch.compile (with --compile)

The clock is read outside blocks only; what happens inside is timed by events on the device. With --out every part is
written as soon as it is measured, and a command that was cut off goes on where it was: rows there are skipped.
--tiny is the same in small, for a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

from benchmarks.machine import describe
from benchmarks.many_worlds import show, write_rows
from benchmarks.models import spec_of
from benchmarks.wan_contenders import Bench
from benchmarks.wan_parts import measure_blocks, measure_codec, measure_first, measure_fused
from engine.hardware import default_dtype
from engine.loading import check_device
from engine.presets import Preset, preset

Part = Literal["first", "blocks", "codec", "compile"]
Row = dict[str, Any]
# Sinks of a window where they are not the preset's: LongLive's.
SINKS = {12: 3}
TINY_SIZE = (32, 48)


@dataclass(frozen=True)
class WanConfig:
    """What to measure.

    Attributes:
        model: t2v-1.3b or t2v-14b.
        device: where to run.
        parts: which parts.
        windows: latent frames in the cache, the block's among them; 12 has 3 sinks, as LongLive.
        codecs: which codecs frames are made with.
        blocks: timed blocks of each contender.
        rounds: turns that they take.
        height, width: of the frame in pixels.
        numerics: "published" rounds where the published code does, "fast" differs by rounding only.
        baseline: run the baseline too.
        compile: measure the engine with fused elementwise operations too.
        tiny: a tiny model and frame, in float32 on a CPU: shows that all of it runs.
        out: where to write the rows as JSON, and to read what is done already.
    """

    model: str = "t2v-1.3b"
    device: str = "cuda"
    parts: tuple[Part, ...] = ("first", "blocks", "codec")
    windows: tuple[int, ...] = (21, 12)
    codecs: tuple[Literal["vae", "tiny"], ...] = ("vae", "tiny")
    blocks: int = 20
    rounds: int = 5
    height: int = 480
    width: int = 832
    numerics: Literal["published", "fast"] = "published"
    baseline: bool = True
    compile: bool = False
    tiny: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.parts or not self.windows or not self.codecs or min(self.blocks, self.rounds) < 1:
            raise ValueError(f"{self}: expected at least one part, window and codec, and every count from 1")
        if min(self.windows) < 3:
            raise ValueError(f"windows {self.windows}: expected 3 or more latent frames, those of a block")

    def run(self, window: int) -> Preset:
        """Self-Forcing's rollout with this window."""
        base = preset("self-forcing")
        return Preset(base.rollout, window=window, sink=SINKS.get(window, 0))

    def bench(self, window: int, codec: str, cold: bool) -> Bench:
        """One setting to measure."""
        device = check_device("cpu" if self.tiny else self.device)
        size = TINY_SIZE if self.tiny else (self.height, self.width)
        spec = spec_of("tiny" if self.tiny else self.model, self.run(window), codec, size, self.numerics)
        dtype = torch.float32 if self.tiny else default_dtype(device)
        turns = (self.blocks, self.rounds, self.baseline, cold)
        return Bench(spec, window, SINKS.get(window, 0), codec, device, dtype, *turns)


@dataclass(frozen=True)
class Job:
    """One row to make."""

    part: Part
    window: int
    codec: str
    make: Callable[[Bench], Row]


def jobs(config: WanConfig) -> Iterator[Job]:
    """All rows, in order: the first block of the process has to come first."""
    first = config.windows[0]
    known: dict[Part, Callable[[Bench], Row]] = {
        "first": measure_first,
        "blocks": measure_blocks,
        "codec": measure_codec,
        "compile": measure_fused,
    }
    wanted = [*config.parts, *(["compile"] if config.compile and "compile" not in config.parts else [])]
    for part in (p for p in get_args(Part) if p in wanted):
        windows = config.windows if part == "blocks" else (first,)
        for window in windows:
            for codec in config.codecs:
                yield Job(part, window, codec, known[part])


def settings(config: WanConfig, job: Job) -> Row:
    """What tells a row from others: a row that agrees in all of it is done."""
    size = TINY_SIZE if config.tiny else (config.height, config.width)
    return {
        "part": job.part,
        "model": "tiny" if config.tiny else config.model,
        "frame": f"{size[0]}x{size[1]}",
        "window": job.window,
        "sink": SINKS.get(job.window, 0),
        "codec": job.codec,
        "numerics": config.numerics,
        "device": "cpu" if config.tiny else config.device,
        "blocks": config.blocks,
        "baseline": config.baseline,
    }


def done(out: Path | None) -> list[Row]:
    """Rows that are written already.

    Raises:
        ValueError: the file is none of ours.
    """
    if out is None or not out.exists():
        return []
    try:
        rows = json.loads(out.read_text())
        return [row for row in rows if row["part"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{out} holds no rows of this benchmark ({error}): name another --out") from None


def run(config: WanConfig) -> list[Row]:
    """Measure what is not done yet; all rows.

    Raises:
        ValueError: the device is not there, or the settings do not go together.
    """
    rows, cold, machine = done(config.out), True, describe()
    show([machine])
    for job in jobs(config):
        names = settings(config, job)
        print(f"\n{job.part}, window {job.window}, codec {job.codec}", flush=True)
        old = next((row for row in rows if all(row.get(k) == v for k, v in names.items())), None)
        if old is not None:
            print(f"done already, at commit {old['commit']}")
            continue
        made = job.make(config.bench(job.window, job.codec, cold))
        rows, cold = [*rows, {**names, **machine, **made}], False
        show([made])
        if config.out:
            write_rows(config.out, rows)
    return rows


def main() -> None:
    try:
        run(tyro.cli(WanConfig, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
