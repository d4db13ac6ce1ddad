"""The parts of benchmarks/wan.py: one row each, of one setting of model, window and codec.

Legend: T frames.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.many_worlds import interleaved, percentiles
from benchmarks.step import now
from benchmarks.wan_baseline import OneByOne
from benchmarks.wan_contenders import Bench, Contender, OurBlocks, TheirBlocks, streaming
from engine.codecs.wan_vae import WanVae
from engine.models import rotary, wan_layers

PEAK = 989e12  # operations a second of an H100 or H200 in dense bf16
WARM = 5  # first blocks that "warm" is the median of
Row = dict[str, Any]


def measure_first(bench: Bench) -> Row:
    """First blocks of new worlds: the process's first, and later ones; with `deterministic` histories too."""
    model = bench.model()
    ours = OurBlocks(bench, model)
    cold = first_block(ours) * 1e3
    row: Row = {"cold_ms": cold} if bench.cold else {}
    row["warm_ms"] = warm_block(ours) * 1e3
    del ours
    row["warm_deterministic_ms"] = warm_block(OurBlocks(bench, model, deterministic=True)) * 1e3
    if bench.baseline:
        row["baseline_warm_ms"] = warm_block(TheirBlocks(bench, model)) * 1e3
        row["warm_ratio"] = row["baseline_warm_ms"] / row["warm_ms"]
    del model
    clear()
    return row


def warm_block(contender: OurBlocks | TheirBlocks) -> float:
    """Seconds of a first block when others went before: a median."""
    return float(np.median([first_block(contender) for _ in range(1 + WARM)][1:]))


def first_block(contender: OurBlocks | TheirBlocks) -> float:
    """Seconds from opening a world to its first frames on the host."""
    started = now()
    contender.open()
    contender.block().cpu()
    seconds = now() - started
    contender.marks.seconds()
    return seconds


def measure_blocks(bench: Bench) -> Row:
    """Blocks in steady state, engine and baseline in turns."""
    model = bench.model()
    weights = memory(bench.device)
    contenders: dict[str, Contender] = {"engine": OurBlocks(bench, model)}
    row: Row = {"engine_peak_bytes": fill(bench, contenders["engine"])}
    if bench.baseline:
        before = memory(bench.device)
        contenders["baseline"] = TheirBlocks(bench, model)
        row["baseline_peak_bytes"] = fill(bench, contenders["baseline"]) - before + weights
    ways = {name: c.timed for name, c in contenders.items()}
    seconds = interleaved(ways, bench.blocks, min(bench.rounds, bench.blocks))
    for name, contender in contenders.items():
        row |= timings(bench, name, contender, seconds[name])
    row |= ratios(row) if bench.baseline else {}
    del ways, contender, contenders, model
    clear()
    return row


def measure_fused(bench: Bench) -> Row:
    """The engine's blocks, its elementwise chains fused; the baseline shares its layers and is left out."""
    with fused_chains():
        return measure_blocks(replace(bench, baseline=False))


def fill(bench: Bench, contender: Contender) -> int:
    """Run until the window is full and has moved; the most bytes that the device held meanwhile."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    for _ in range(-(-bench.window // bench.spec.block) + 2):
        contender.timed()
    contender.forget()
    return torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else 0


def timings(bench: Bench, name: str, contender: Contender, seconds: list[float]) -> Row:
    """What one contender's blocks took."""
    denoise, decode = (float(np.median(x)) for x in (contender.denoise, contender.decode))
    rate = bench.denoise_flops / denoise
    return {
        **percentiles(seconds, name),
        **percentiles(contender.denoise, f"{name}_denoise"),
        **percentiles(contender.decode, f"{name}_decode"),
        f"{name}_fps": bench.frames / float(np.median(seconds)),
        f"{name}_fps_without_codec": bench.frames / denoise,
        f"{name}_jitter": float(np.percentile(seconds, 99) / np.median(seconds)),
        f"{name}_denoise_tflops": rate / 1e12,
        f"{name}_denoise_share_of_peak": rate / PEAK,
        f"{name}_decode_share_of_peak": bench.decode_flops / decode / PEAK,
    }


def ratios(row: Row) -> Row:
    """How many times faster the engine is."""
    return {
        f"ratio_{name}": row[f"baseline_{part}p50_ms"] / row[f"engine_{part}p50_ms"]
        for name, part in (("end_to_end", ""), ("denoise", "denoise_"), ("decode", "decode_"))
    }


def measure_codec(bench: Bench) -> Row:
    """Decoding alone, of blocks of random latents."""
    model = bench.model()
    latents = torch.randn(1, bench.spec.block, *bench.spec.latent, device=bench.device)
    ways: dict[str, Callable[[], Tensor]] = {"codec": partial(partial(streaming, model, [None]), latents)}
    one_by_one = OneByOne(model.codec) if isinstance(model.codec, WanVae) and bench.baseline else None
    if one_by_one is not None:
        ways["baseline"] = partial(one_by_one.decode, latents)
    with torch.inference_mode():
        for _ in range(3):
            for way in ways.values():
                way()
        seconds = interleaved({n: partial(timed, w) for n, w in ways.items()}, bench.blocks, 1)
    row: Row = {"latents": bench.spec.block}
    for name, values in seconds.items():
        rate = bench.decode_flops / float(np.median(values))
        row |= percentiles(values, name) | {f"{name}_tflops": rate / 1e12, f"{name}_share_of_peak": rate / PEAK}
    if one_by_one is not None:
        row |= {"baseline_by": one_by_one.source, "ratio": row["baseline_p50_ms"] / row["codec_p50_ms"]}
    del ways, one_by_one, model
    clear()
    return row


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call, the device idle before and after."""
    started = now()
    call()
    return now() - started


@contextmanager
def fused_chains() -> Iterator[None]:
    """The denoiser's chains of elementwise operations, rotary and modulated norms, as kernels of torch.compile."""
    compiled = partial(torch.compile, dynamic=False)
    with (
        patch.object(rotary, "rotate_pairs", compiled(rotary.rotate_pairs)),
        patch.object(wan_layers, "modulate", compiled(wan_layers.modulate)),
        patch.object(wan_layers.RMSNorm, "forward", compiled(wan_layers.RMSNorm.forward)),
    ):
        yield


def memory(device: torch.device) -> int:
    """Bytes that the device holds; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def clear() -> None:
    """Give memory back before the next part."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
