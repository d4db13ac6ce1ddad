"""The caller's side of a sharded engine: asks all ranks, waits for all, and says who failed and why.

The caller is in no process group, so that no collective can hang it. Knows processes and messages; knows no worlds.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from engine.ranks.control import Inbox, Message, ProtocolError, plain, send
from engine.ranks.faults import MEANING, Sign, WorkerLost, cause_of, raised, sign_of
from engine.ranks.processes import bury, end_of, last_words, stopped

# Seconds: between looks at the clock; that other signs of one fault may take; that a process gets to end by itself.
TICK, GRACE, LEAVE = 0.25, 1.0, 2.0
# A caller that looked at the clock so long ago was itself stopped, and its ranks too, or they wait for it.
SLEPT = 5.0
# Of the timeout, what may pass in silence: the rest is for ending the ranks.
PATIENCE = 0.9
# Signs that were long in coming: no others are waited for.
LATE = {"silent", "idle"}


@dataclass
class Rank:
    """One rank, as the caller sees it.

    Attributes:
        process: where it was started here.
        heard: when it last gave a sign of life, by the monotonic clock.
        progress: what it then said of how far it had come.
    """

    number: int
    link: socket.socket
    process: subprocess.Popen | None = None
    log: IO[bytes] | None = None
    inbox: Inbox = field(default_factory=Inbox)
    heard: float = 0.0
    progress: int = 0


class Crew:
    """The ranks of one engine.

    Args:
        ranks: connected, in order.
        timeout: seconds within which a fault ends a request.
        folder: of files that go with them, and are deleted with them.
    """

    def __init__(self, ranks: Sequence[Rank], timeout: float, folder: str = ""):
        self.ranks, self.timeout, self.folder = list(ranks), timeout, folder
        self.owner, self.lost = os.getpid(), ""
        self.selector = selectors.DefaultSelector()
        for rank in self.ranks:
            rank.link.settimeout(timeout * PATIENCE)
            self.selector.register(rank.link, selectors.EVENT_READ, rank)

    def ask(self, message: Message, alone: bool = False, together: bool = False) -> list[Message]:
        """Every rank's answer to a request, in order; or rank 0's alone. What rank 0 was warned of is warned of here.

        Args:
            together: the ranks do this with collectives, so that one that stands still holds up all.

        Raises:
            ValueError: or what else all ranks raised alike: they go on.
            WorkerLost: a rank failed; all are ended.
        """
        self._check()
        asked = self.ranks[:1] if alone else self.ranks
        try:
            signs = [sign for rank in asked if (sign := self._send(rank, message))]
            answers = self._gather(asked, signs, together and len(self.ranks) > 1)
        except WorkerLost:
            raise
        except BaseException as error:
            self.end(f"a request was broken off by {type(error).__name__}")
            raise
        found = raised({i: message.told for i, message in enumerate(answers)}, len(answers))
        if found is not None:
            raise self._fault([found]) if isinstance(found, Sign) else found
        for words in answers[0].told.get("warnings", ()):
            warnings.warn(words, stacklevel=2)
        return answers

    def _check(self) -> None:
        if os.getpid() != self.owner:
            raise RuntimeError("a sharded engine belongs to the process that made it, and this is a fork of that one")
        if self.lost:
            raise WorkerLost(0, f"is gone, as all ranks are: {self.lost}", ". `recover()` starts new ones")

    def _send(self, rank: Rank, message: Message) -> Sign | None:
        try:
            send(rank.link, message)
        except TimeoutError:
            return self._silent(rank)
        except OSError:
            return self._died(rank)
        return None

    def _gather(self, asked: Sequence[Rank], signs: list[Sign], together: bool) -> list[Message]:
        """Wait for all answers, or for the cause of a fault."""
        answers: dict[int, Message] = {}
        clock = Clock(asked, self.timeout * PATIENCE, together)
        until = time.monotonic() + GRACE if signs else None
        while len(answers) < len(asked):
            for key, _ in self.selector.select(TICK):
                signs += self._hear(key.data, answers, clock)
            waiting = [rank for rank in asked if rank.number not in answers]
            signs += [] if signs else self._late(waiting, answers, clock)
            if signs and until is None:
                until = time.monotonic() + GRACE
            if until is not None and (time.monotonic() > until or {s.kind for s in signs} <= LATE):
                raise self._fault(signs)
        if signs:
            raise self._fault(signs)
        return [answers[rank.number] for rank in asked]

    def _hear(self, rank: Rank, answers: dict[int, Message], clock: Clock) -> list[Sign]:
        """Take in what a rank has sent; the signs of a fault that it holds."""
        signs = []
        try:
            piece = rank.link.recv(1 << 20)
            messages = list(rank.inbox.add(piece))
        except (OSError, ProtocolError) as error:
            piece, messages = b"", []
            signs.append(Sign("link", rank.number, MEANING["link"].format(error)))
        if not piece:
            self.selector.unregister(rank.link)
            told = answers[rank.number].told if rank.number in answers else {}
            return [] if told.get("fault") else [*signs, self._died(rank)]
        clock.hear(rank)
        for message in messages:
            if "beat" in message.told:
                clock.move(rank, message.told["beat"])
                continue
            answers[rank.number] = message
            sign = sign_of(rank.number, message.told)
            signs += [] if sign is None else [sign]
        return signs

    def _late(self, waiting: Sequence[Rank], answers: Mapping[int, Message], clock: Clock) -> list[Sign]:
        """Signs that ranks hang: no word from one, or no progress of any, maybe as one has given up."""
        silent = clock.silent(waiting)
        if silent:
            return [self._silent(rank) for rank in silent]
        last = clock.idle(waiting)
        if last is None:
            return []
        found = raised({number: message.told for number, message in answers.items()}, len(self.ranks))
        words = f"made no progress for {clock.patience:.0f} s (raise the timeout if a layer may take as long)"
        return [found if isinstance(found, Sign) else Sign("idle", last.number, words)]

    def _silent(self, rank: Rank) -> Sign:
        why = ": its process is stopped" if rank.process is not None and stopped(rank.process.pid) else ""
        return Sign("silent", rank.number, f"gave no sign of life for {self.timeout * PATIENCE:.0f} s{why}")

    def _died(self, rank: Rank) -> Sign:
        """What became of a rank whose connection has ended."""
        if rank.process is None:
            return Sign("died", rank.number, "lost its link: its connection was closed")
        try:
            code = rank.process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            return Sign("link", rank.number, "closed its connection")
        return Sign("died", rank.number, f"died: its process {end_of(code)}{last_words(rank.log)}")

    def _fault(self, signs: Sequence[Sign]) -> WorkerLost:
        """End all ranks; the error that names the one whose fault it was."""
        sign = cause_of(signs)
        self.end(f"rank {sign.rank} {sign.cause}")
        return WorkerLost(sign.rank, sign.cause, ". All ranks were ended")

    def end(self, why: str = "it was closed", kindly: bool = False) -> None:
        """End the ranks. Ending twice is fine.

        Args:
            kindly: let them leave by themselves, with status 0.
        """
        if self.lost or os.getpid() != self.owner:
            return
        self.lost = why
        for rank in self.ranks:
            if kindly:
                with contextlib.suppress(OSError):
                    send(rank.link, plain({"op": "leave"}))
            rank.link.close()
        self.selector.close()
        bury([rank.process for rank in self.ranks if rank.process], LEAVE if kindly else 0.0)
        for rank in self.ranks:
            if rank.log is not None:
                rank.log.close()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


class Clock:
    """When each rank was last heard, and any of them last moved on.

    Args:
        patience: seconds of silence, or of standing still, that are borne.
        together: whether standing still counts.
    """

    def __init__(self, ranks: Sequence[Rank], patience: float, together: bool):
        self.ranks, self.patience, self.together = ranks, patience, together
        self.looked = self.moved = time.monotonic()
        for rank in ranks:
            rank.heard = self.looked

    def hear(self, rank: Rank) -> None:
        rank.heard = time.monotonic()

    def move(self, rank: Rank, progress: int) -> None:
        if progress != rank.progress:
            rank.progress, self.moved = progress, time.monotonic()

    def silent(self, waiting: Sequence[Rank]) -> list[Rank]:
        """Those that have given no sign of life for too long."""
        now = time.monotonic()
        if now - self.looked > SLEPT:  # the caller was stopped, or its machine asleep: all begin anew
            self.moved += now - self.looked
            for rank in self.ranks:
                rank.heard += now - self.looked
        self.looked = now
        return [rank for rank in waiting if now - rank.heard > self.patience]

    def idle(self, waiting: Sequence[Rank]) -> Rank | None:
        """Where nobody has moved on for too long, the one that has come least far."""
        if not waiting or not self.together or time.monotonic() - self.moved <= self.patience:
            return None
        return min(waiting, key=lambda rank: rank.progress)
