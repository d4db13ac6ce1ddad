"""A rank at work: it loads the model, keeps its share of the worlds, and does what the caller asks, until that is gone.

Every rank is given the same requests in the same order, and answers each; rank 0 with what was made. An error that all
ranks raise alike is an answer like others; any other ends the rank. A thread reads requests, so that a rank whose
caller is gone ends at once, even amid a collective; another tells, while a request runs, that the rank is alive and how
far it has come.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist

from engine.ranks.control import Message, call, plain, receive, send
from engine.ranks.desk import Desk

# Errors that say what was wrong with a request, and leave the engine as it was: PoolFull is a ValueError.
ORDINARY = (ValueError, TypeError, LookupError, OSError, NotImplementedError)
# What every rank answers in full, and not rank 0 for all.
ALOUD = ("load", "begin")
PR_SET_PDEATHSIG = 1


def main() -> None:
    """The process of one rank; its job is a line of JSON on standard input."""
    job = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, whose end ends this
    if job["parent"]:
        end_with(job["parent"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    link = call(tuple(job["address"]), bytes.fromhex(job["secret"]), job["rank"], job["timeout"])
    serve(link, Desk(job["rank"], job["device"]), job["beat"])
    os._exit(0)  # nothing is left to be done, and Python takes a second to tidy up


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, should it be stopped then; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(link: socket.socket, desk: Desk, beat: float) -> None:
    """Answer the caller's requests until it says that it is done.

    Args:
        beat: seconds between signs of life.
    """
    requests, lock, busy = queue.Queue[Message](), threading.Lock(), threading.Event()
    threading.Thread(target=read, args=(link, requests), daemon=True).start()
    threading.Thread(target=tell, args=(link, lock, busy, desk, beat), daemon=True).start()
    while (request := requests.get()).told["op"] != "leave":
        busy.set()
        made = answer(desk, request, desk.rank == 0 or request.told["op"] in ALOUD)
        busy.clear()
        with lock:
            send(link, made)
        if made.told.get("fault"):
            os._exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


def read(link: socket.socket, requests: queue.Queue[Message]) -> None:
    """Pass requests on; end the process when the caller is gone."""
    try:
        while True:
            message = receive(link)
            requests.put(message)
            if message.told["op"] == "leave":
                return
    except (EOFError, OSError):
        os._exit(1)


def tell(link: socket.socket, lock: threading.Lock, busy: threading.Event, desk: Desk, beat: float) -> None:
    """Tell the caller every `beat` seconds that a request is being worked on, and how far it has come."""
    while True:
        busy.wait()
        with lock, contextlib.suppress(OSError):  # a caller that is gone is the reader's business
            if busy.is_set():
                send(link, plain({"beat": desk.progress}))
        time.sleep(beat)


def answer(desk: Desk, request: Message, aloud: bool) -> Message:
    """What a request made, or its error.

    Args:
        aloud: with what was made; else that it is done.
    """
    try:
        with warnings.catch_warnings(record=True) as warned:
            made = desk.do(request)
        words = [str(each.message) for each in warned if issubclass(each.category, UserWarning)]
        return Message(made.told | {"warnings": words}, made.tensors) if aloud else plain({"done": True})
    except ORDINARY as error:
        return plain(told_of(error) | {"fault": False})
    except BaseException as error:
        told = told_of(error)
        if told["kind"] == "error":  # nobody expected it: say where
            sys.excepthook(type(error), error, error.__traceback__)
        return plain(told | {"fault": True})


def told_of(error: BaseException) -> dict[str, Any]:
    """An error's class and words, and what kind of fault it would be."""
    words, name = str(error) or type(error).__name__, type(error).__name__
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in words
    link = isinstance(error, dist.DistError | ConnectionError | EOFError) or "gloo" in words.lower()
    return {"error": name, "words": words, "kind": "memory" if memory else "link" if link else "error"}
