"""Starting the ranks of a sharded engine: processes of this machine, or those that torchrun has started on several.

Ranks are started as programs (`python -c`), so a caller's script needs no main guard and is not run again. Each calls
back on a socket that is bound to loopback, unless torchrun's MASTER_ADDR is another machine's way to here. Under
torchrun rank 0's process is the caller's and starts a process for rank 0's work; the others' serve in place.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from engine.hardware import set_threads
from engine.ranks.control import ProtocolError, admit, call
from engine.ranks.crew import Crew, Rank
from engine.ranks.desk import Desk
from engine.ranks.faults import WorkerLost
from engine.ranks.launch import ModelSource, Placement, Torchrun
from engine.ranks.processes import bury, last_words
from engine.ranks.serving import serve

# Where our packages lie.
ROOT = Path(__file__).parents[2]
PROGRAM = "from engine.ranks.serving import main; main()"
LOOPBACK = "127.0.0.1"
# Seconds: that all ranks may take to call, with Python and torch to be read; that the first words may; between looks.
START, FIRST, LOOK = 300.0, 5.0, 0.2
# Names in torchrun's store.
STORE, ADDRESS, TAKEN, GROUP = "inferix_env", "caller", "taken", "inferix_env ranks"


@dataclass(frozen=True)
class Started:
    """The ranks, and where they meet to form a process group: a file, or a store of [host, port, prefix].

    Attributes:
        store: torchrun's, which has to live as long as the ranks.
    """

    crew: Crew
    place: str | list[Any]
    store: dist.Store | None = None


def start(placement: Placement, timeout: float, run: Torchrun | None) -> Started:
    """Start the ranks, and wait until all have called.

    Raises:
        WorkerLost: one did not come.
    """
    host = LOOPBACK if run is None else address_of(run.host)
    store = None if run is None else store_of(run, timeout)
    folder = tempfile.mkdtemp(prefix="inferix_env-")
    secret, processes = secrets.token_bytes(32), dict[int, tuple[subprocess.Popen, IO[bytes]]]()
    try:
        with socket.create_server((host, 0), backlog=placement.ranks) as door:
            where = door.getsockname()[:2]
            if store is not None:
                if store.add(TAKEN, 1) > 1:
                    raise RuntimeError("the ranks that torchrun has started serve one engine, which there was already")
                store.set(ADDRESS, json.dumps({"address": where, "secret": secret.hex()}))
            here = placement.ranks if run is None else 1
            for number in range(here):
                device = placement.device(number if run is None else run.local)
                job = {"address": where, "secret": secret.hex(), "rank": number, "device": device}
                job |= {"timeout": FIRST, "beat": beat(timeout)}
                processes[number] = begin(job, here, host == LOOPBACK)
            links = wait(door, secret, placement.ranks, processes)
    except BaseException:
        bury([process for process, _ in processes.values()], 0.0)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    ranks = [Rank(i, links[i], *processes.get(i, (None, None))) for i in range(placement.ranks)]
    place = str(Path(folder) / "store") if run is None else [run.host, run.port, GROUP]
    return Started(Crew(ranks, timeout, folder), place, store)


def beat(timeout: float) -> float:
    """Seconds between a rank's signs of life."""
    return min(1.0, timeout / 10)


def begin(job: dict[str, Any], several: int, near: bool) -> tuple[subprocess.Popen, IO[bytes]]:
    """Start one rank's process; what it writes goes to a file, of which an error shows the last line.

    Args:
        several: ranks that share the threads this process would use; with more threads than cores steps take seconds.
        near: all ranks are on this machine, and their traffic stays on loopback.
    """
    told = dict(os.environ)
    told["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), told.get("PYTHONPATH", "")]))
    told["OMP_NUM_THREADS"] = str(max(1, set_threads() // several))
    if near:
        stay_near(told)
    # A process that is started by a thread would be ended with that thread.
    main = threading.current_thread() is threading.main_thread()
    log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=log, stderr=log, env=told
    )
    assert process.stdin is not None
    with process.stdin as line:
        line.write(json.dumps(job | {"parent": os.getpid() if main else 0}).encode() + b"\n")
    return process, log


def stay_near(environment: MutableMapping[str, str]) -> None:
    """Keep the traffic between ranks of one machine on loopback, unless the user has said otherwise."""
    if Path("/sys/class/net/lo").exists():
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(name, "lo")


def wait(
    door: socket.socket, secret: bytes, ranks: int, processes: dict[int, tuple[subprocess.Popen, IO[bytes]]]
) -> dict[int, socket.socket]:
    """The connections of all ranks, each of which has proved that it belongs to this run."""
    links: dict[int, socket.socket] = {}
    door.settimeout(LOOK)
    until = time.monotonic() + START
    while len(links) < ranks:
        for number, (process, log) in processes.items():
            if number not in links and process.poll() is not None:
                raise WorkerLost(number, f"did not start: exit status {process.returncode}{last_words(log)}")
        if time.monotonic() > until:
            missing = next(i for i in range(ranks) if i not in links)
            raise WorkerLost(missing, f"did not call within {START:.0f} s of the start")
        try:
            link, _ = door.accept()
        except TimeoutError:
            continue
        link.settimeout(FIRST)
        try:
            rank = admit(link, secret)
        except (ProtocolError, EOFError, OSError):  # a stranger: whoever else calls here is none of ours
            link.close()
            continue
        if rank in links or not 0 <= rank < ranks:
            link.close()
            continue
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        links[rank] = link
    return links


def join(run: Torchrun, own: ModelSource, device: str, timeout: float) -> None:
    """Serve the caller, which is rank 0's process, from this one, until it is done.

    Args:
        own: the model that this rank's script asks for.

    Raises:
        ConnectionError: it did not say where it is.
    """
    store = store_of(run, START)
    told = json.loads(store.get(ADDRESS))
    host, port = told["address"]
    if host == LOOPBACK:
        stay_near(os.environ)
    link = call((host, port), bytes.fromhex(told["secret"]), run.rank, FIRST)
    serve(link, Desk(run.rank, device, own), beat(timeout))


def store_of(run: Torchrun, timeout: float) -> dist.Store:
    """The store that all processes of a launcher reach; torchrun keeps one, for others rank 0 does."""
    main = run.rank == 0 and not run.agent
    wait_for = timedelta(seconds=timeout)
    return dist.PrefixStore(STORE, dist.TCPStore(run.host, run.port, None, main, wait_for, wait_for_workers=False))


def address_of(host: str) -> str:
    """The address to listen at: where other machines reach this one, or loopback where there are none."""
    found = socket.gethostbyname(host)
    return LOOPBACK if found.startswith("127.") else found
