"""A device as the planner knows it (engine/parallel/machines.py), by what is measured on it, and out of a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from benchmarks.rank_kernels import Timer, full, row
from benchmarks.rank_worlds import Case, step
from engine.engine import Engine
from engine.parallel import costs
from engine.parallel.layout import Exchange, Layout
from engine.parallel.machines import HIDDEN, Machine
from engine.parallel.shapes import Load, action_linears, loads, sizes_of
from engine.spec import WorldSpec

COPIED = {"cuda": 1 << 30, "cpu": 1 << 26}  # bytes of a copy that shows the memory's bandwidth


def block_seconds(timer: Timer, case: Case) -> float:
    """Seconds of a block of a world with a full window, which nothing has to decode."""
    sim = Engine(case.model(timer.device, timer.dtype), deterministic=False)
    world = case.begin(sim)
    step(sim, world)
    seconds = timer.seconds(lambda: step(sim, world))
    sim.close(world)
    return seconds


def calibrated(timer: Timer, case: Case, block: float) -> Machine:
    """The planner's figures of this device, by this world. Args: block: seconds of a block on one rank."""
    spec = case.spec
    sizes, one = sizes_of(spec), row(timer, spec, Exchange())
    nbytes = COPIED.get(timer.device.type, COPIED["cpu"])
    x = torch.empty(nbytes, dtype=torch.uint8, device=timer.device)
    hbm = 2 * nbytes / timer.seconds(lambda: x.clone())
    calls = Counter(loads(spec, [full(spec)]))
    floor = least_seconds(timer, case) / sum(calls.values())
    linears, attention = 1e12 * one["products_tflops"], 1e12 * one["attention_tflops"]
    bare = Machine(name_of(timer.device), linears, attention, hbm, memory_of(timer.device), floor, 0.0, HIDDEN, True)
    missing = block - sum(n * computing(bare, spec, load) for load, n in calls.items())
    once = sum(n * load.new for load, n in calls.items()) * sizes.tokens * sizes.width * timer.dtype.itemsize
    return replace(bare, traffic=max(0.0, missing / sizes.layers / once * hbm))


def least_seconds(timer: Timer, case: Case) -> float:
    """Seconds that a layer adds to a block of frames of one token, over all calls of the denoiser."""
    spec, more = case.spec, 4
    cell = spec.codec.scale * spec.denoiser.patch
    depths = [replace(spec.denoiser, layers=spec.denoiser.layers + n) for n in (0, more)]
    small = [replace(case, spec=replace(spec, frame=(cell, cell), denoiser=d)) for d in depths]
    few, many = (block_seconds(timer, one) for one in small)
    return max(0.0, many - few) / more


def computing(machine: Machine, spec: WorldSpec, load: Load) -> float:
    """Seconds of all layers' products and attention on one rank."""
    sizes = sizes_of(spec)
    layout = Layout.of(Exchange(), sizes)
    attended = costs.attention_flops(layout, sizes, load) + costs.context_flops(layout, sizes, load)
    each = costs.linear_flops(layout, sizes, load) / machine.linears + attended / machine.attention
    return sizes.layers * each + 2 * load.new * sizes.tokens * action_linears(spec) / machine.linears


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_of(device: torch.device) -> float:
    """Bytes that may be held."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 1e12
