"""Processes of ranks: what became of them, what they said last, and how they are ended. Knows the operating system."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal; Linux only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def end_of(code: int) -> str:
    """How a process ended, by its return code."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def last_words(log: IO[bytes] | None) -> str:
    """The last line that a process wrote to standard error, after a colon."""
    if log is None:
        return ""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f" ({lines[-1].strip()})" if lines else ""


def bury(processes: Sequence[subprocess.Popen], patience: float) -> None:
    """Wait for processes to end, kill those that do not, and leave none behind."""
    until = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    for process in processes:
        process.wait()
