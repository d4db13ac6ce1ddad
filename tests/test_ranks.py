"""The ranks that tests run on: they answer together, say what failed, and do not hang."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import POOLS, run


def total(rank: int, value: float) -> float:
    x = torch.tensor(value + rank)
    dist.all_reduce(x)
    return float(x)


def refuse(rank: int) -> None:
    raise ValueError(f"no, says rank {rank}")


def stall(rank: int) -> None:
    if rank:
        time.sleep(600)


def leave(rank: int) -> None:
    if rank:
        os._exit(3)
    total(rank, 0.0)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_all_ranks_answer_in_order():
    assert run(total, 1.0) == [3.0, 3.0]
    assert run("tests.test_ranks.total", 2.0) == [5.0, 5.0]


def test_what_a_rank_raises_is_raised_and_the_ranks_go_on():
    with pytest.raises(ValueError, match="no, says rank 0"):
        run(refuse)
    assert run(total, 0.0) == [1.0, 1.0]


@pytest.mark.slow
def test_ranks_that_hang_or_die_are_killed_and_new_ones_started():
    for function, error, words in ((stall, TimeoutError, r"ranks \[1\]"), (leave, RuntimeError, "rank 1 died")):
        run(total, 0.0)
        pids = [p.pid for p in POOLS[2].processes]
        with pytest.raises(error, match=words):
            run(function, timeout=2.0)
        assert not any(alive(pid) for pid in pids if pid)
    assert run(total, 0.0) == [1.0, 1.0]
