"""python -m benchmarks.magi: how fast MAGI-1 runs, beside what the published code does.

Full-size random weights, made on the device; one world and one prompt. The engine and a baseline (magi_baseline.py, the
published rollout on the same weights) take turns in one process, as many chunks in flight as there can be. A row for
every number of steps and of chunks in flight:

    seconds per video-second   of a chunk, end to end, its frames on the host: with one chunk in flight that is also the
                               latency of a prompt; with four a prompt shows after four chunks
    denoise, decode            the same of its parts, by events on the device
    first                      seconds from nothing to the first chunk's frames
    share of peak              operations of the plan (benchmarks/magi_plan.py) a second over 989 TF/s

The baseline's video has so many seconds behind it (--behind), all of whose keys and values it copies in every layer;
the engine's numbers do not depend on that. With --out every row is written as soon as it is measured, and a command
that was cut off goes on where it was. --tiny is the same in small, for a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks import magi_plan
from benchmarks.machine import describe
from benchmarks.magi_contenders import Bench, measure
from benchmarks.many_worlds import show, write_rows
from benchmarks.models import magi_spec_of
from benchmarks.wan import done
from engine.hardware import default_dtype
from engine.loading import check_device
from engine.presets import PRESETS
from engine.spec import WorldSpec

Row = dict[str, Any]
TINY_SIZE = (32, 48)


@dataclass(frozen=True)
class MagiBenchConfig:
    """What to measure.

    Attributes:
        model: magi-4.5b or magi-24b, or either with -fp8 behind it.
        kind: distill or base.
        device: where to run.
        steps: numbers of denoising steps.
        flights: chunks in flight.
        chunks: timed chunks of each contender.
        rounds: turns that they take.
        behind: chunks that the baseline's video has behind it.
        height, width: of the frame in pixels.
        codec: vae, or preview for the denoiser alone.
        baseline: run the baseline too.
        tiny: a tiny model and frame, in float32 on a CPU: shows that all of it runs.
        out: where to write the rows as JSON, and to read what is done already.
    """

    model: str = "magi-4.5b"
    kind: Literal["distill", "base"] = "distill"
    device: str = "cuda"
    steps: tuple[int, ...] = (8, 16)
    flights: tuple[int, ...] = (4, 1)
    chunks: int = 3
    rounds: int = 3
    behind: int = 8
    height: int = 720
    width: int = 720
    codec: Literal["vae", "preview"] = "vae"
    baseline: bool = True
    tiny: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.steps or not self.flights or min(self.chunks, self.rounds) < 1 or self.behind < 0:
            raise ValueError(f"{self}: expected some steps and flights, counts from 1, and 0 or more behind")

    def spec(self, steps: int, flight: int) -> WorldSpec:
        """What the world is.

        Raises:
            ValueError: the settings do not go together.
        """
        preset = magi_plan.preset_of(PRESETS[f"magi-4.5b-{self.kind}"], steps, flight)
        return magi_spec_of("magi-tiny" if self.tiny else self.model, preset, self.size)

    @property
    def size(self) -> tuple[int, int]:
        return TINY_SIZE if self.tiny else (self.height, self.width)

    def bench(self, steps: int, flight: int) -> Bench:
        """One setting to measure."""
        device = check_device("cpu" if self.tiny else self.device)
        dtype = torch.float32 if self.tiny else default_dtype(device)
        turns = (self.chunks, self.rounds, self.behind, self.baseline)
        return Bench(self.spec(steps, flight), self.codec, device, dtype, *turns)


def settings(config: MagiBenchConfig) -> Iterator[Row]:
    """What tells each row from the others: a row that agrees in all of it is done."""
    for flight, steps in product(config.flights, config.steps):
        yield {
            "part": "chunks",
            "model": "magi-tiny" if config.tiny else config.model,
            "kind": config.kind,
            "frame": f"{config.size[0]}x{config.size[1]}",
            "steps": steps,
            "in_flight": flight,
            "codec": config.codec,
            "device": "cpu" if config.tiny else config.device,
            "chunks": config.chunks,
            "behind": config.behind,
            "baseline": config.baseline,
        }


def run(config: MagiBenchConfig) -> list[Row]:
    """Measure what is not done yet; all rows.

    Raises:
        ValueError: the device is not there, or the settings do not go together.
    """
    rows, machine = done(config.out), describe()
    show([machine])
    for names in settings(config):
        print(f"\n{names['steps']} steps, {names['in_flight']} in flight", flush=True)
        old = next((row for row in rows if all(row.get(k) == v for k, v in names.items())), None)
        if old is not None:
            print(f"done already, at commit {old['commit']}")
            continue
        made = measure(config.bench(names["steps"], names["in_flight"]))
        rows = [*rows, {**names, **machine, **made}]
        show([made])
        if config.out:
            write_rows(config.out, rows)
    return rows


def main() -> None:
    try:
        run(tyro.cli(MagiBenchConfig, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
