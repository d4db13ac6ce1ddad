"""What a row of numbers was measured on: hardware, versions, commit, load."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from engine.hardware import cpu_flags


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def commit() -> str:
    """The short hash of the checkout, with a + where it has changes; "unknown" outside one."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def describe() -> dict[str, str]:
    """Hardware, versions, commit and load average, as one flat row."""
    isa = sorted(cpu_flags() & {"amx_bf16", "avx512_bf16", "avx512f", "avx2"})
    row = {
        "cpu": f"{cpu_name()} x{len(os.sched_getaffinity(0))}",
        "isa": " ".join(isa),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": version("gymnasium"),
        "commit": commit(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }
    if torch.cuda.is_available():
        row["gpu"] = torch.cuda.get_device_name()
    return row
