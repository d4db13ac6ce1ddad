"""python -m benchmarks.paged_attention: attention over pages read in place, against gathering them first. Needs CUDA.

Microseconds a call of one layer's attention, for N worlds whose pages lie anywhere in the pool, all in bf16:

    gather          pages copied together and the block written behind them, then PyTorch's fused attention: what the
                    first pass of a block costs without a paged kernel
    gather_again    the same in the block's later passes, which find the copy there
    triton          the project's kernel over the pages as they lie; _int8 and _fp8 over pages of codes
    flash           flash-attn over the pages as they lie, where it is installed and reads pages of that size: only
                    multiples of 256 tokens, hence the last shape

Histories are full, or ragged (worlds of different ages, which PyTorch's attention has to be masked for). Ways take
turns; medians. Writes rows as JSON with --out.

Legend: N worlds, T pages of history, F latent frames in flight, S tokens of one, h heads, d head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.many_worlds import interleaved, show, write_rows
from benchmarks.step import now
from engine.attention import attend_fused
from engine.kv.pages import PlainPages, QuantisedPages, taken
from engine.kv.view import Group
from engine.paged_attention import attend_flash, choose, flash_reads, paged_attend
from engine.spec import KVStream

DTYPE = torch.bfloat16
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Shape:
    """One layer's attention: S, h, d, T and F."""

    tokens: int
    heads: int
    width: int
    pages: int
    frames: int

    @property
    def stream(self) -> KVStream:
        return KVStream(layers=1, tokens=self.tokens, heads=self.heads, width=self.width)


SHAPES = {
    "1560 tokens": Shape(1560, 12, 128, 7, 3),
    "48 tokens": Shape(48, 4, 64, 12, 1),
    "1536 tokens": Shape(1536, 12, 128, 7, 3),
}


@dataclass(frozen=True)
class PagedConfig:
    """What to measure.

    Attributes:
        worlds: the Ns.
        rounds: turns that the ways take.
        lap_ms: how long a way is run on one reading of the clock, at least one call.
        out: where to write the rows as JSON.
    """

    worlds: tuple[int, ...] = (1, 8, 64)
    rounds: int = 10
    lap_ms: float = 20.0
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.worlds or min(*self.worlds, self.rounds) < 1 or self.lap_ms <= 0:
            raise ValueError(f"{self}: expected at least one N, every count from 1, and a lap_ms above 0")


def drawn(
    shape: Shape, n: int, ragged: bool, device: torch.device, code: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Arguments of `paged_attend`: random numbers, pages in random order, of worlds that are full or of all ages."""
    torch.manual_seed(0)
    total, (s, h, d) = n * shape.pages, (shape.tokens, shape.heads, shape.width)
    kind = PlainPages if code is None else partial(QuantisedPages, code=code)
    store = kind(shape.stream, total, DTYPE, device)
    for page in range(total):
        store.write(torch.tensor([page], device=device), *torch.randn(2, 1, s, h, d, device=device, dtype=DTYPE))
    q, k, v = torch.randn(3, n, shape.frames * s, h, d, device=device, dtype=DTYPE)
    pages = torch.randperm(total).to(device).view(n, shape.pages)
    counts = torch.full((n,), shape.pages, dtype=torch.int32, device=device)
    if ragged:
        counts -= torch.arange(n, dtype=torch.int32, device=device) % shape.pages
    return {"q": q, "own_keys": k, "own_values": v, "pages": pages, "counts": counts, **store.raw()}


class Gathered:
    """History and block joined in a buffer of their own, head by head in memory, as engine.kv.paged does it."""

    def __init__(self, shape: Shape, inputs: dict[str, Tensor]):
        self.inputs, self.history = inputs, shape.pages * shape.tokens
        real = torch.arange(shape.pages, device=inputs["counts"].device) >= shape.pages - inputs["counts"][:, None]
        seen = torch.cat([real, real.new_ones(len(real), shape.frames)], dim=1)
        self.mask = None if real.all() else seen.repeat_interleave(shape.tokens, dim=1)[:, None, None]
        self.gather()

    def gather(self) -> None:
        n, own, h, d = self.inputs["own_keys"].shape
        self.buffers = []
        for name in ("keys", "values"):
            buffer = self.inputs[name].new_empty(n, h, self.history + own, d).transpose(1, 2)
            buffer[:, : self.history] = taken(self.inputs[name], self.inputs["pages"]).flatten(1, 2)
            self.buffers.append(buffer)

    def again(self) -> Tensor:
        for buffer, name in zip(self.buffers, ("own_keys", "own_values"), strict=True):
            buffer[:, self.history :] = self.inputs[name]
        return attend_fused(self.inputs["q"], Group(slice(None), *self.buffers, self.mask))

    def first(self) -> Tensor:
        self.gather()
        return self.again()


def contenders(shape: Shape, n: int, ragged: bool, device: torch.device) -> dict[str, Way]:
    """The ways that there are on this device, by name."""
    inputs = drawn(shape, n, ragged, device)
    gathered = Gathered(shape, inputs)
    ways: dict[str, Way] = {"gather": gathered.first, "gather_again": gathered.again}
    if device.type == "cuda" and find_spec("triton"):
        from engine.paged_kernel import attend_triton

        ways["triton"] = partial(paged_attend, **inputs, kernel=attend_triton)
        for name, code in CODES.items():
            if kernel := choose(device, DTYPE, shape.width, shape.tokens, code):
                ways[f"triton_{name}"] = partial(paged_attend, **drawn(shape, n, ragged, device, code), kernel=kernel)
    if device.type == "cuda" and flash_reads(device, shape.width, shape.tokens):
        ways["flash"] = partial(paged_attend, **inputs, kernel=attend_flash)
    return ways


def lap(way: Way, calls: int) -> float:
    """Seconds a call."""
    started = now()
    for _ in range(calls):
        way()
    return (now() - started) / calls


def measure(config: PagedConfig, shape: Shape, n: int, ragged: bool, device: torch.device) -> dict[str, float | None]:
    """Medians in microseconds of each way; None of one that there is not."""
    ways = contenders(shape, n, ragged, device)
    laps = {}
    for name, way in ways.items():
        lap(way, 2)  # compiled and warm
        laps[name] = partial(lap, way, max(1, int(config.lap_ms / 1e3 / lap(way, 3))))
    times = interleaved(laps, config.rounds, config.rounds)
    us = {name: float(np.median(values)) * 1e6 for name, values in times.items()}
    names = ("gather", "gather_again", "triton", "triton_int8", "triton_fp8", "flash")
    gains = {f"triton_speedup_over_{name}": over(us, name) for name in ("gather", "gather_again", "flash")}
    return {**{f"{name}_us": us.get(name) for name in names}, **gains}


def over(us: dict[str, float], name: str) -> float | None:
    return us[name] / us["triton"] if name in us and "triton" in us else None


def installed(name: str) -> str:
    return version(name) if find_spec(name) else "not installed"


@torch.inference_mode()
def run(config: PagedConfig) -> list[dict]:
    """Measure; a row for each shape, N and kind of history."""
    machine = {**describe(), "triton": installed("triton"), "flash_attn": installed("flash_attn")}
    rows: list[dict] = []
    device = torch.device("cuda")
    for name, shape in SHAPES.items():
        sizes = {field.name: getattr(shape, field.name) for field in fields(shape)}
        for n in config.worlds:
            for ragged in (False, True) if n > 1 else (False,):
                history = "ragged" if ragged else "full"
                row = {"shape": name, **sizes, "dtype": "bfloat16", "worlds": n, "history": history}
                rows.append({**machine, **row, **measure(config, shape, n, ragged, device)})
    return rows


def main() -> None:
    if not torch.cuda.is_available():
        print("benchmarks.paged_attention needs a CUDA GPU: none is here", file=sys.stderr)
        raise SystemExit(2)
    try:
        config = tyro.cli(PagedConfig, description=__doc__)
        rows = run(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    for name in SHAPES:
        show([row for row in rows if row["shape"] == name])
        print()
    if config.out:
        write_rows(config.out, rows)


if __name__ == "__main__":
    main()
