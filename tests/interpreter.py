"""Triton without a GPU: kernels in its interpreter, or compiled only. Each in a process of its own, which Triton needs
because it reads its settings when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[1]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python from the project's root, with further environment variables."""
    command, settings = [sys.executable, *arguments], {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)


def interpreted_outputs(module: str, path: Path) -> dict[str, Tensor]:
    """Tensors that `python -m module path` writes there, its kernels run by Triton's interpreter."""
    run = run_python("-m", module, str(path), TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stderr
    return load_file(path)
