"""python -m benchmarks.kv: what forks, 8-bit pages, range access and pages on the host cost and save.

Four parts, each against a baseline in the same run, in interleaved rounds:

    fork        microseconds and bytes of a fork that shares pages, against a copy of the world's pages
    precision   bytes, step time and drift of pages stored as int8 or fp8 codes, against pages as computed
    access      microseconds a layer for a window's keys and values as a slice and by index, against torch.cat
    offload     bytes and step time of a policy with a long memory, here or on the host, against the plain window

Drift is the PSNR of rollouts against those with pages as computed, under the same openings, seeds and actions. A
rollout is chaotic and leaves any other rounding behind sooner or later; so the yardstick stands beside it, the same
model in its other precision (bf16 for fp32, or the reverse) with unquantised pages. Writes rows as JSON with --out.
On a CPU, device and host are one memory: there the bytes only say which shelf of the pool they lie on.

Legend: T pages, S tokens of a latent frame, h heads, d head width, M horizons, R rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro

from benchmarks.machine import describe
from benchmarks.many_worlds import Contender, full, interleaved, opening, percentiles, show, write_rows
from benchmarks.step import now
from engine import Engine, World, WorldModel
from engine.kv.paged import PagedView
from engine.kv.policy import Reach
from engine.kv.pool import Pool, is_range
from inferix_env import worlds
from inferix_env.evaluation.metrics import psnr

Part = Literal["fork", "precision", "access", "offload"]
# How the pages of a pool are stored: kv_dtype, and whether every channel of the keys has a scale of its own.
STORED: dict[str, tuple[str | None, bool]] = {
    "as computed": (None, True),
    "int8 per channel": ("int8", True),
    "int8 per head": ("int8", False),
    "fp8 per channel": ("fp8", True),
    "fp8 per head": ("fp8", False),
}
LAPS = 20  # times that a layer is read on one reading of the clock


@dataclass(frozen=True)
class KVConfig:
    """What to measure.

    Attributes:
        world: a shipped world's name, or a folder.
        device: where to run.
        parts: which parts.
        forks: how many forks of one world.
        rollouts: worlds whose drift is measured.
        horizons: after which steps; the longest is how far they are rolled out.
        steps: timed steps of each engine.
        rounds: turns that contenders take.
        top_k, memory: of the policy with a long memory (see KVPolicy).
        out: where to write the rows as JSON.
    """

    world: str = "doom-take-cover"
    device: str = "cpu"
    parts: tuple[Part, ...] = get_args(Part)
    forks: int = 64
    rollouts: int = 6
    horizons: tuple[int, ...] = (1, 16, 64, 256)
    steps: int = 200
    rounds: int = 10
    top_k: int = 4
    memory: int = 64
    out: Path | None = None

    def __post_init__(self) -> None:
        counts = (self.forks, self.rollouts, *self.horizons, self.steps, self.rounds)
        if not self.parts or not self.horizons or min(counts) < 1:
            raise ValueError(f"{self}: expected at least one part and one horizon, and every count from 1")


def measure_fork(config: KVConfig, model: WorldModel, folder: Path) -> Iterator[dict]:
    """One call that makes all forks, against clones of the world's pages, made one world after the other."""
    sim = Engine(model, max_worlds=config.forks + 1)
    world, pool = sim.open(opening(folder, 0, full(sim)), seed=0), sim.pool
    ways = {"fork": partial(fork, sim, world, config.forks), "copy": partial(copy, sim, world, config.forks)}
    times = interleaved(ways, 2 * config.rounds, config.rounds)
    us = {name: float(np.median(values)) * 1e6 for name, values in times.items()}
    held, pages = pool.num_held, len(world.table.pages)
    forks = sim.fork(world, config.forks, seeds=range(config.forks))
    shared = pool.num_held
    Contender([(sim, forks)]).step()
    yield {
        "forks": config.forks,
        "fork_us": us["fork"],
        "copy_us": us["copy"],
        "speedup_over_copy": us["copy"] / us["fork"],
        "fork_bytes_until_commit": (shared - held) * pool.page_bytes,
        "fork_bytes_after_one_step": (pool.num_held - held) * pool.page_bytes,
        "copy_bytes": config.forks * pages * pool.page_bytes,
    }


def fork(sim: Engine, world: World, count: int) -> float:
    """Seconds a fork."""
    started = now()
    forks = sim.fork(world, count)
    seconds = now() - started
    for made in forks:
        sim.close(made)
    return seconds / count


def copy(sim: Engine, world: World, count: int) -> float:
    """Seconds a copy of all that the world's pages store."""
    pages = world.table.pages
    assert is_range(pages)
    run, started = slice(pages[0], pages[-1] + 1), now()
    for _ in range(count):
        [x[run].clone() for layer in sim.pool.shelf.layers for x in layer.raw().values()]
    return (now() - started) / count


def storing(model: WorldModel, num_worlds: int, kv_dtype: str | None, per_channel: bool) -> Engine:
    """An engine whose pool stores pages so."""
    sim = Engine(model, max_worlds=num_worlds, kv_dtype=kv_dtype)
    if not per_channel:
        old, (kind, scales) = sim.pool, (kv_dtype, per_channel)
        sim.runner.pool = Pool(
            old.stream, old.capacity, old.dtype, old.device, old.slack, kind, scales, summarise=old.summarise
        )
    return sim


def roll_out(way: Contender, horizons: tuple[int, ...]) -> np.ndarray:
    """Frames uint8 [M, R, H, W, 3] after each of the horizons, ascending."""
    kept = []
    for step in range(1, max(horizons) + 1):
        way.step()
        if step in horizons:
            kept.append(np.stack([block.frames[-1] for block in way.blocks]))
    return np.stack(kept)


def reconstruction_error(plain: Pool, pages: list[int], kv_dtype: str | None, per_channel: bool) -> tuple[float, float]:
    """Root mean square error of keys, and of values, over that of the keys and values themselves, all layers pooled."""
    stored = Pool(plain.stream, len(pages), plain.dtype, plain.device, kv_dtype=kv_dtype, per_channel=per_channel)
    there, here = (torch.tensor([row], device=plain.device) for row in (pages, list(range(len(pages)))))
    error, power = np.zeros(2), np.zeros(2)
    for layer in range(plain.stream.layers):
        given = plain.gather(layer, there)
        stored.write(layer, here[0].tolist(), given[0][0], given[1][0])
        for i, (x, y) in enumerate(zip(given, stored.gather(layer, here), strict=True)):
            error[i] += float((x.double() - y.double()).square().sum())
            power[i] += float(x.double().square().sum())
    keys, values = np.sqrt(error / power).tolist()
    return keys, values


def measure_precision(config: KVConfig, model: WorldModel, folder: Path) -> Iterator[dict]:
    """A row for each way of storing pages, and one for the model in its other precision."""
    other = torch.float32 if model.dtype == torch.bfloat16 else torch.bfloat16
    engines = {name: storing(model, config.rollouts, *kind) for name, kind in STORED.items()}
    engines["other precision"] = Engine(worlds.model(folder, config.device, other), max_worlds=config.rollouts)
    ways, frames = {}, {}
    for name, sim in engines.items():
        ways[name] = Contender([(sim, [sim.open(opening(folder, i), seed=i) for i in range(config.rollouts)])])
        frames[name] = roll_out(ways[name], config.horizons)
    plain, members = ways["as computed"].crews[0]
    pages = [page for world in members for page in world.table.pages]
    errors = {name: reconstruction_error(plain.pool, pages, *kind) for name, kind in STORED.items()}
    times = step_alone(ways, config)
    for name, sim in engines.items():
        yield {
            "pages": name,
            "dtype": str(sim.model.dtype).removeprefix("torch."),
            "bytes_per_latent_frame": sim.pool.page_bytes,
            "bytes_over_computed": sim.pool.page_bytes / plain.pool.page_bytes,
            "key_relative_rms": errors.get(name, (0.0, 0.0))[0],
            "value_relative_rms": errors.get(name, (0.0, 0.0))[1],
            **drift(frames["as computed"], frames[name], config.horizons),
            **percentiles(times[name]),
            "time_over_computed": float(np.median(times[name]) / np.median(times["as computed"])),
        }


def step_alone(ways: dict[str, Contender], config: KVConfig) -> dict[str, list[float]]:
    """Seconds of the steps of each engine's first world, once the others are closed."""
    for way in ways.values():
        sim, members = way.crews[0]
        while len(members) > 1:
            sim.close(members.pop())
        way.step()
    return interleaved({name: way.step for name, way in ways.items()}, config.steps, config.rounds)


def drift(reference: np.ndarray, frames: np.ndarray, horizons: tuple[int, ...]) -> dict[str, float | None]:
    """PSNR in dB at each horizon, errors pooled over the rollouts; None where not a pixel differs."""
    values = [psnr(a, b) for a, b in zip(reference, frames, strict=True)]
    return {f"psnr_{h}": v if math.isfinite(v) else None for h, v in zip(sorted(set(horizons)), values, strict=True)}


def measure_access(config: KVConfig, model: WorldModel, folder: Path) -> Iterator[dict]:
    """Microseconds a layer. To read a window: `range`, `gather`. To join a block to it as attention needs it: in place
    in a run of pages, by index (once a block, and `again` in its later passes), or by `torch.cat`, which a cache
    without pages does in every pass."""
    ways = readings(model, window_of(model))
    laps = {name: partial(lap, way, model.spec.stream.layers) for name, way in ways.items()}
    times = interleaved(laps, 10 * config.rounds, config.rounds)
    us = {f"{name}_us": float(np.median(values)) * 1e6 for name, values in times.items()}
    joins = [name for name in ways if name.startswith("join") and name != "join_cat"]
    over_cat = {f"{name}_speedup_over_cat": us["join_cat_us"] / us[f"{name}_us"] for name in joins}
    yield {"window": window_of(model), **us, **over_cat}


def readings(model: WorldModel, window: int) -> dict[str, Callable[[int], Any]]:
    """Ways of getting at a window's keys and values in one layer."""
    stream, order = model.spec.stream, list(range(window))
    pool = filled(Pool(stream, window + model.spec.block, model.dtype, model.device))
    scattered, flight = order[::-1], list(range(window, pool.capacity))
    rows = torch.tensor([scattered], device=model.device)
    shape = (3, 1, model.spec.block * stream.tokens, stream.heads, stream.width)
    q, k, v = torch.randn(shape, dtype=model.dtype, device=model.device)
    dense = [[x.flatten(0, 1)[None].clone() for x in pool.range(i, 0, window)] for i in range(stream.layers)]
    run, any_pages = (PagedView(pool, [Reach(order, p, [], [])], [flight]) for p in (order, scattered))
    return {
        "range": lambda layer: pool.range(layer, 0, window),
        "gather": lambda layer: pool.gather(layer, rows),
        "join_range": lambda layer: run.layer(layer).extend(q, k, v),
        "join_gather": lambda layer: (any_pages.buffers.pop(layer, None), any_pages.layer(layer).extend(q, k, v)),
        "join_gather_again": lambda layer: any_pages.layer(layer).extend(q, k, v),
        "join_cat": lambda layer: [torch.cat([x, y], 1) for x, y in zip(dense[layer], (k, v), strict=True)],
    }


def window_of(model: WorldModel) -> int:
    return model.spec.kv.window or 12


def filled(pool: Pool) -> Pool:
    """The pool, with random keys and values [T, S, h, d] in every page of every layer."""
    pages, stream = list(range(pool.capacity)), pool.stream
    shape = (2, len(pages), stream.tokens, stream.heads, stream.width)
    for layer in range(stream.layers):
        pool.write(layer, pages, *torch.randn(shape, dtype=pool.dtype, device=pool.device))
    return pool


@torch.inference_mode()
def lap(way: Callable[[int], Any], layers: int) -> float:
    """Seconds a layer."""
    started = now()
    for layer in range(layers):
        for _ in range(LAPS):
            way(layer)
    return (now() - started) / layers / LAPS


def measure_offload(config: KVConfig, model: WorldModel, folder: Path) -> Iterator[dict]:
    """A row for the plain window, and for a long memory on the device and on the host."""
    near = replace(model.spec.kv, window=window_of(model), top_k=0, memory=0)
    far = replace(near, top_k=config.top_k, memory=config.memory)
    ways, frames = {}, {}
    for name, policy, away in (("window", near, False), ("memory", far, False), ("offloaded", far, True)):
        sim = Engine(model, policy=policy, offload=away)
        ways[name] = Contender([(sim, [sim.open(opening(folder, 0, full(sim)), seed=0)])])
        frames[name] = roll_out(ways[name], (1, 2, 3))
    times = interleaved({name: way.step for name, way in ways.items()}, config.steps, config.rounds)
    for name, way in ways.items():
        sim, _ = way.crews[0]
        shelves = {"device": sim.pool.shelf, "host": sim.pool.host}
        yield {
            "history": name,
            "policy": f"{sim.policy.window}, top_k {sim.policy.top_k} of {sim.policy.memory}",
            **{f"{where}_bytes": int((s.counts > 0).sum()) * sim.pool.page_bytes for where, s in shelves.items()},
            **{f"{where}_bytes_allocated": s.num_bytes for where, s in shelves.items()},
            **percentiles(times[name]),
            "time_over_window": float(np.median(times[name]) / np.median(times["window"])),
            "same_frames_as_memory": bool(np.array_equal(frames[name], frames["memory"])),
        }


MEASURES = {
    "fork": measure_fork,
    "precision": measure_precision,
    "access": measure_access,
    "offload": measure_offload,
}


def run(config: KVConfig) -> list[dict]:
    """Measure; rows of one part have the same names."""
    folder = worlds.find(config.world)
    model = worlds.model(folder, config.device, None)
    rows = []
    for part in config.parts:
        for row in MEASURES[part](config, model, folder):
            rows.append({"world": config.world, "device": config.device, **describe(), "part": part, **row})
    return rows


def main() -> None:
    try:
        config = tyro.cli(KVConfig, description=__doc__)
        rows = run(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    for part in config.parts:
        show([row for row in rows if row["part"] == part])
        print()
    if config.out:
        write_rows(config.out, rows)


if __name__ == "__main__":
    main()
