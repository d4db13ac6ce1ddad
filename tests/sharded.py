"""Two ranks for tests of sharded engines and envs: started once a session, and again after a test has ended them."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from engine import ParallelConfig, ShardedEngine
from inferix_env.env import WorldSimEnv

CLOSE = 1e-4  # of latents, rewards and odds: two ranks against one, in fp32
SOON = 4.0  # seconds of the timeout in tests
CONFIG = ParallelConfig(2, "ulysses", timeout=SOON, snapshot_every=3)


@cache
def first_env(folder: Path) -> WorldSimEnv:
    """An env that is never closed, so that the ranks stay."""
    return WorldSimEnv(folder, dtype="float32", parallel=CONFIG)


def on_two_ranks(folder: Path) -> WorldSimEnv:
    """An env of a world on the two ranks of this session; other envs with the same arguments share them."""
    first = first_env(folder)
    assert isinstance(first.engine, ShardedEngine)
    if first.engine.lost:
        first.engine.recover()
    return WorldSimEnv(folder, dtype="float32", parallel=CONFIG)


def alive(pid: int) -> bool:
    """Whether a process runs; a killed one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)
