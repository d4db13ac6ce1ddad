"""python -m benchmarks.step: how fast one world steps, and where the time goes.

Three engines take turns, a few steps each, in one process: the shipped one (cached history, the machine's fast
precision), the same without a cache (its whole window recomputed for every pass), and the cached one in plain fp32.
Medians of interleaved rounds, so a machine whose speed drifts is fair to all. Writes a JSON row with --out.
"""

from __future__ import annotations

import copy
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.machine import describe
from engine.conditioning import Condition
from engine.kv.view import CausalView
from engine.schedule import mix
from inferix_env import worlds
from inferix_env.env import WorldSimEnv
from inferix_env.guard import Unguarded


@dataclass(frozen=True)
class StepConfig:
    """What to measure.

    Attributes:
        world: a shipped world's name, or a folder.
        device: where to run.
        steps: timed steps of each engine.
        uncached: timed steps without a cache (they are slow).
        num_steps: denoising passes of a block; the world's own by default.
        out: where to write the row as JSON.
    """

    world: str = "doom-take-cover"
    device: str = "cpu"
    steps: int = 200
    uncached: int = 20
    num_steps: int | None = None
    out: Path | None = None


@dataclass
class Clock:
    """Seconds of every call, by name; waits for the device before and after."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            started = now()
            result = function(*args, **kwargs)
            self.seconds.setdefault(name, []).append(now() - started)
            return result

        return call


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def split(env: WorldSimEnv, clock: Clock) -> None:
    """Time the parts of a step from outside: replaces bound functions of this env's engine by timed ones.

    Of a shallow copy: the engine itself is shared with the other envs.
    """
    sim = env.engine = copy.copy(env.engine)
    env.guard = Unguarded(sim)
    model = sim.model
    denoise, passes = model.denoiser, len(sim.passes)
    calls = iter(range(10**9))

    def by_pass(*args):
        name = "commit" if next(calls) % passes == passes - 1 else "denoise"
        return clock.timed(name, denoise)(*args)

    runner = sim.runner = copy.copy(sim.runner)
    sim.model = runner.model = replace(model, denoiser=by_pass)
    runner.decode = clock.timed("decode", runner.decode)
    sim._outlook = clock.timed("heads", sim._outlook)
    sim._read_heads = clock.timed("heads", sim._read_heads)
    sim.step = clock.timed("engine.step", sim.step)


def uncached_step(env: WorldSimEnv, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """One block with the window's history recomputed for every pass, then decoded: what a world without a cache does.

    Args:
        latents: the window's clean latent frames [1, W, C, h, w].
        actions: of these and of the new frame, [1, W + 1, A].
    """
    model, spec = env.engine.model, env.world_spec
    count = latents.shape[1] + 1
    context = mix(latents, torch.randn_like(latents), spec.context_noise)
    x = torch.randn(1, 1, *spec.latent, device=latents.device)
    condition = Condition(actions, torch.zeros(1, count, len(spec.variables), device=latents.device))
    positions = torch.arange(count, device=latents.device)[None]
    for step in env.engine.passes:
        if step.update is None:
            continue
        times = torch.full((1, count), spec.context_noise, device=latents.device)
        times[:, -1] = step.level
        view = CausalView(spec.kv, spec.stream.tokens, block=spec.block)
        prediction, _ = model.denoiser(torch.cat([context, x], 1), times, positions, condition, view)
        x = step.update(x, prediction[:, -1:].float())
    model.codec.decode(x, None)
    return x


def measure_uncached(env: WorldSimEnv) -> float:
    spec, device = env.world_spec, env.engine.model.device
    window = spec.kv.window or 12
    latents = torch.randn(1, window, *spec.latent, device=device)
    actions = torch.zeros(1, window + 1, spec.actions.width, device=device)
    with torch.inference_mode():
        started = now()
        uncached_step(env, latents, actions)
        return now() - started


def drive(env: WorldSimEnv, rng: np.random.Generator) -> float:
    """One step, at the level of the env; an ended episode is reset outside the clock."""
    if env.over:
        env.reset(seed=int(rng.integers(2**31)))
    action = env.action_space.sample()
    started = now()
    env.step(action)
    return now() - started


def first_step(config: StepConfig) -> dict[str, float]:
    """Seconds from nothing loaded to a reset env, and of the very first step."""
    started = now()
    env = WorldSimEnv(config.world, device=config.device, num_steps=config.num_steps)
    env.reset(seed=0)
    ready = now()
    env.step(env.action_space.sample())
    return {"load_and_reset_s": ready - started, "first_step_ms": (now() - ready) * 1e3}


def run(config: StepConfig) -> dict:
    """Measure, and return everything as one row."""
    row: dict = {"world": config.world, **describe(), **first_step(config)}
    fast = WorldSimEnv(config.world, device=config.device, num_steps=config.num_steps)
    plain = WorldSimEnv(config.world, device=config.device, num_steps=config.num_steps, dtype="float32")
    parts = WorldSimEnv(config.world, device=config.device, num_steps=config.num_steps)
    clock, rng = Clock(), np.random.default_rng(0)
    split(parts, clock)
    times: dict[str, list[float]] = {"fast": [], "fp32": [], "uncached": [], "parts": []}
    for env in (fast, plain, parts):
        env.action_space.seed(0)
        for _ in range(20):  # past the window's growth, so that every timed step has a full history
            drive(env, rng)
    clock.seconds.clear()
    rounds = 10
    for _ in range(rounds):
        times["fast"] += [drive(fast, rng) for _ in range(config.steps // rounds)]
        times["uncached"] += [measure_uncached(fast) for _ in range(max(1, config.uncached // rounds))]
        times["fp32"] += [drive(plain, rng) for _ in range(config.steps // rounds)]
        times["parts"] += [drive(parts, rng) for _ in range(config.steps // rounds)]
    return {**row, **summary(fast, times, clock)}


def summary(env: WorldSimEnv, times: dict[str, list[float]], clock: Clock) -> dict:
    """Medians, ratios, and the split of a step."""
    ms = {name: float(np.median(values)) * 1e3 for name, values in times.items()}
    steps = len(clock.seconds["engine.step"])
    parts = {name: sum(values) / steps * 1e3 for name, values in clock.seconds.items()}
    inside = float(np.median(clock.seconds["engine.step"])) * 1e3
    return {
        "dtype": str(env.engine.model.dtype).removeprefix("torch."),
        "passes": f"{len(env.engine.passes) - 1}+1",
        "steps_per_s": 1e3 / ms["fast"],
        "p50_ms": ms["fast"],
        "p99_ms": float(np.percentile(times["fast"], 99)) * 1e3,
        "real_time_factor": 1e3 / ms["fast"] / env.world_spec.fps,
        "uncached_ms": ms["uncached"],
        "speedup_over_uncached": ms["uncached"] / ms["fast"],
        "fp32_ms": ms["fp32"],
        "speedup_over_fp32": ms["fp32"] / ms["fast"],
        **{f"{name}_ms": parts[name] for name in ("denoise", "commit", "decode", "heads")},
        "env_overhead_ms": ms["parts"] - inside,
        "env_overhead_percent": (ms["parts"] - inside) / ms["parts"] * 100,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    config = tyro.cli(StepConfig, description=__doc__)
    try:
        worlds.find(config.world)
        row = run(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    for name, value in row.items():
        print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
