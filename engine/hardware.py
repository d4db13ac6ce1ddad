"""What this machine computes fast in, and how many threads to use: asked once, here."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the CPU as Linux names them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    lines = (line for line in info.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").split())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 beats fp32 on the device: any CUDA GPU from Ampere on, CPUs with AMX or AVX-512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def has_cuda() -> bool:
    return torch.cuda.is_available()


@cache
def set_threads() -> int:
    """Use every core this process may run on, unless OMP_NUM_THREADS says otherwise; decided once."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.get_num_threads()
