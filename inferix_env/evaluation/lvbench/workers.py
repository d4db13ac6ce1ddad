"""Work spread over processes that end with the one that began them, however that ends.

Each process has every n-th job. Knows processes; knows nothing of the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Job = TypeVar("Job")
Work = Callable[[Sequence[Any], int], Iterator[str]]


class WorkerLost(RuntimeError):
    """A process ended before its work did."""


def spread(work: Work, jobs: Sequence[Job], num_workers: int) -> Iterator[str]:
    """Do the jobs in processes; yields what `work` yields, as it comes.

    Args:
        work: (jobs, which process) -> what each job left to say; a function of a module, as it is sent to the others.
        num_workers: processes; with one, the work is done in this one.

    Raises:
        ValueError, OSError: what the work raised.
        WorkerLost: a process was killed.
    """
    if num_workers == 1 or len(jobs) < 2:
        yield from work(jobs, 0)
        return
    num_workers = min(num_workers, len(jobs))
    with cores_shared(num_workers):
        readers = dict(start(work, jobs[i::num_workers], i) for i in range(num_workers))
    try:
        yield from gathered(readers)
        for process in readers.values():
            process.join()  # each leaves by itself, and leaves nothing behind
    finally:
        for process in readers.values():
            process.terminate()
        for process in readers.values():
            process.join()


@contextmanager
def cores_shared(num_workers: int) -> Iterator[None]:
    """Processes that begin meanwhile compute on their share of the cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_workers))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def start(work: Work, jobs: Sequence[Any], index: int) -> tuple[Connection, BaseProcess]:
    """A process at its jobs, and where it says what is done."""
    context: Any = multiprocessing.get_context("spawn")  # a fork would share CUDA and threads
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(work, list(jobs), index, writer), daemon=True)
    process.start()
    writer.close()  # so that the reader sees the end when the process ends
    return reader, process


def gathered(readers: dict[Connection, BaseProcess]) -> Iterator[str]:
    """What the processes say until all are done."""
    busy = dict(readers)
    while busy:
        for reader in wait(list(busy)):
            assert isinstance(reader, Connection)
            try:
                kind, message = reader.recv()
            except EOFError:
                busy[reader].join()
                raise WorkerLost(lost(busy[reader].exitcode)) from None
            if kind == "done":
                del busy[reader]
            elif kind == "said":
                yield message
            else:
                raise {"ValueError": ValueError}.get(kind, OSError)(message)


def lost(exit_code: int | None) -> str:
    """What is said of a process that is gone: it was killed, or left after an error that it printed itself."""
    how = (
        f"was killed (signal {-exit_code}), perhaps for memory" if exit_code and exit_code < 0 else "failed, see above"
    )
    return f"a worker {how}: what is done is kept, and the same command goes on; fewer --workers need less memory"


def serve(work: Work, jobs: Sequence[Any], index: int, writer: Connection) -> None:
    """What a process does: its jobs, and a word after each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        for message in work(jobs, index):
            writer.send(("said", message))
        writer.send(("done", ""))
    except (ValueError, OSError) as error:
        writer.send(("ValueError" if isinstance(error, ValueError) else "OSError", str(error)))


def end_with_parent() -> None:
    """Leave at once when the process that began this one is gone, killed or not."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
