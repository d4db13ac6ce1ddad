"""Ranks for tests: Gloo processes that are spawned once for the whole test session, and run functions together.

`run(function, *args)` calls `function(rank, *args)` on every rank of the default process group and returns what each
returned. A function goes by its name, so it stands at the head of a module. What a rank raises is raised here; ranks
that do not answer in time are killed, and the next run starts new ones. Ranks end with the process that started them.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

START = 60.0  # seconds that the first answer of new processes may take longer
GRACE = 3.0  # seconds that other ranks get to answer once one of them has failed
POOLS: dict[int, Pool] = {}


def run(function: str | Callable[..., Any], *args: Any, ranks: int = 2, timeout: float = 60.0) -> list[Any]:
    """Call `function(rank, *args)` on so many ranks; return their results in order.

    Args:
        function: of a module, or its dotted name, "tests.test_exchange.attend_on".
        timeout: seconds until ranks that have not answered are killed.

    Raises:
        TimeoutError: ranks did not answer in time.
        Died: a rank's process ended.
        Exception: what the first rank raised that failed, with its traceback as a note.
    """
    name = function if isinstance(function, str) else f"{function.__module__}.{function.__qualname__}"
    if ranks not in POOLS:
        POOLS[ranks] = Pool(ranks)
    try:
        return POOLS[ranks].run(name, args, timeout)
    except BaseException:
        if POOLS[ranks].stale:
            POOLS.pop(ranks).close()
        raise


class Died(RuntimeError):
    """A rank's process is gone."""


class Pool:
    """Processes of one group.

    Attributes:
        stale: they may wait for each other still, so that new ones are needed.
    """

    def __init__(self, ranks: int):
        self.stale, self.fresh = False, True
        context, self.folder = get_context("spawn"), tempfile.TemporaryDirectory()
        pipes = [context.Pipe() for _ in range(ranks)]
        self.ends = [here for here, _ in pipes]
        place = str(Path(self.folder.name) / "store")
        jobs = [(rank, ranks, place, there, os.getpid()) for rank, (_, there) in enumerate(pipes)]
        self.processes = [context.Process(target=serve, args=job, daemon=True) for job in jobs]
        for process in self.processes:
            process.start()
        for _, there in pipes:
            there.close()

    def run(self, name: str, args: tuple[Any, ...], timeout: float) -> list[Any]:
        self.stale = True  # until all have answered alike
        job = pickle.dumps((name, args))
        for end in self.ends:
            end.send_bytes(job)
        answers = self._answers(time.monotonic() + timeout + START * self.fresh)
        self.fresh = False
        failed = [answers[r] for r in sorted(answers) if not answers[r][0]]
        died = [x for x in failed if isinstance(x[1], Died)]
        self.stale = bool(died) or 0 < len(failed) < len(self.ends) or len(answers) < len(self.ends)
        if failed:
            _, error, text = (died or failed)[0]
            error.add_note(text)
            raise error
        if self.stale:
            missing = sorted(set(range(len(self.ends))) - set(answers))
            raise TimeoutError(f"{name}: ranks {missing} did not answer within {timeout} s, and are killed")
        return [answers[rank][1] for rank in range(len(self.ends))]

    def _answers(self, until: float) -> dict[int, tuple[Any, ...]]:
        """What ranks have answered by a time, by rank; soon after one of them fails, no more is waited for."""
        answers: dict[int, tuple[Any, ...]] = {}
        waiting = {end: rank for rank, end in enumerate(self.ends)}
        while waiting and (left := until - time.monotonic()) > 0:
            for end in connection.wait(list(waiting), left):
                rank = waiting.pop(end)  # type: ignore[call-overload]
                answers[rank] = received(end, rank)  # type: ignore[arg-type]
                if not answers[rank][0]:
                    until = min(until, time.monotonic() + GRACE)
        return answers

    def close(self) -> None:
        """Kill the processes, and wait until they are gone."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


@atexit.register
def close_all() -> None:
    while POOLS:
        POOLS.popitem()[1].close()


def received(end: Connection, rank: int) -> tuple[Any, ...]:
    """A rank's answer: (True, result) or (False, error, traceback)."""
    try:
        return pickle.loads(end.recv_bytes())
    except (EOFError, ConnectionError):
        return False, Died(f"rank {rank} died"), ""


def serve(rank: int, ranks: int, place: str, end: Connection, parent: int) -> None:
    """A rank's process: join the group, then run what is asked for, until nobody asks."""
    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    while True:
        try:
            name, args = pickle.loads(end.recv_bytes())
        except EOFError:
            return
        end.send_bytes(pickle.dumps(answer(name, rank, args)))


def answer(name: str, rank: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call made: its result, or its error with the traceback as text."""
    try:
        module, _, attribute = name.rpartition(".")
        made = getattr(importlib.import_module(module), attribute)(rank, *args)
        pickle.dumps(made)  # what cannot be sent is this call's error
        return True, made
    except Exception as error:
        return False, sendable(error), f"on rank {rank}:\n{traceback.format_exc()}"


def sendable(error: Exception) -> Exception:
    """An error that can be sent as it is, or one with the same words."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def leave_with(parent: int) -> None:
    """End this process as soon as the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
