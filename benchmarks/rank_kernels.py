"""How long a layer's products and attention take on one device at the shapes that one of several ranks has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from engine.attention import attend_fused, attend_partial
from engine.kv.view import Group
from engine.parallel import costs
from engine.parallel.layout import Exchange, Layout
from engine.parallel.shapes import Load, Shape, Sizes, loads, shape_at, sizes_of
from engine.spec import WorldSpec


@dataclass(frozen=True)
class Timer:
    """Runs things on a device, and says how long they take."""

    device: torch.device
    dtype: torch.dtype
    repeats: int

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of the fastest run: what disturbs makes slower."""
        return min([self.once(run) for _ in range(self.repeats + 1)][1:])

    def once(self, run: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - started

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def largest_load(spec: WorldSpec) -> Load:
    """The call of the denoiser that most is attended to in, of a world with a full window."""
    return max(loads(spec, [full(spec)]), key=lambda load: load.pairs)


def full(spec: WorldSpec) -> Shape:
    """The block of a world with a full window."""
    return shape_at(spec, 10_000)


def product_seconds(timer: Timer, spec: WorldSpec, tokens: int) -> float:
    """Seconds of a layer's products over so many tokens: three kinds timed, each counted as often as there are."""
    sizes, ffn = sizes_of(spec), getattr(spec.denoiser, "ffn", 4 * spec.denoiser.width)
    x, wide, hidden = (timer.random(tokens, n) for n in (sizes.width, sizes.wide, ffn))
    up, down = timer.random(sizes.hidden, sizes.width), timer.random(sizes.width, ffn)
    square = timer.random(sizes.width, sizes.wide)
    rest = (sizes.linears - up.numel() - down.numel()) / square.numel()
    times = [timer.seconds(partial(F.linear, a, weight)) for a, weight in ((x, up), (hidden, down), (wide, square))]
    return times[0] + times[1] + rest * times[2]


def attention_seconds(timer: Timer, sizes: Sizes, layout: Layout, load: Load) -> float:
    """Seconds of a layer's self-attention on the rank that has most: with a ring, of all its parts."""
    shared, parts = layout.queries // layout.keys, layout.exchange.groups if layout.sequence_sharded else 1
    queries, keys = load.new * max(layout.group) * shared, (load.history + load.new) * max(layout.cached)
    q = timer.random(1, queries, layout.keys, sizes.head_width)
    k, v = (timer.random(1, keys, layout.keys, sizes.head_width) for _ in range(2))
    group = Group(slice(None), k, v)
    run = attend_partial if parts > 1 else attend_fused
    return parts * timer.seconds(lambda: run(q, group))


def row(timer: Timer, spec: WorldSpec, exchange: Exchange) -> dict[str, Any]:
    """One exchange's shapes."""
    sizes, load = sizes_of(spec), largest_load(spec)
    layout = Layout.of(exchange, sizes)
    products = product_seconds(timer, spec, load.new * max(layout.own))
    attention = attention_seconds(timer, sizes, layout, load)
    pairs = load.new * (load.history + load.new)  # what is timed sees all keys; blocks in flight may see fewer
    flops = costs.attention_flops(layout, sizes, replace(load, pairs=pairs))
    return {
        "exchange": str(exchange),
        "ranks": exchange.ranks,
        "tokens": load.new * max(layout.own),
        "products_ms": products * 1e3,
        "products_tflops": costs.linear_flops(layout, sizes, load) / products / 1e12,
        "attention_ms": attention * 1e3,
        "attention_tflops": flops / attention / 1e12,
    }


def rows(timer: Timer, spec: WorldSpec, ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Heads split, and tokens split, over each number of ranks."""
    made = []
    for count in ranks:
        kinds = [Exchange()] if count == 1 else [Exchange(count), Exchange(1, "ring", count)]
        made += [row(timer, spec, exchange) for exchange in kinds]
    return made
