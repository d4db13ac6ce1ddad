"""Remote: worlds and contexts that live with ranks, by number: asks for them, and brings them back to new ranks.

Every request is a message that names worlds and contexts by numbers given here, so that it can be asked again. Knows
how ranks are started, and what is written to them; knows no formulas.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.conditioning import Context
from engine.ranks.control import Message
from engine.ranks.far import FarContext, FarWorld, Name, Reader, Writer
from engine.ranks.journal import Journal
from engine.ranks.launch import ModelSource, ParallelConfig, Placement, Torchrun
from engine.ranks.starting import Started, start
from engine.world import World

# What rank 0 does alone; what all do with one collective after the other, so that a pause is a fault; what changes
# worlds, and is asked again to bring them back.
ALONE = ("prompt", "scene", "latents")
TOGETHER = ("outlook", "step", "second_opinion")
CHANGING = ("open", "observe", "step", "fork", "restore", "close")
# A collective waits so many times as long as the caller, which ends it before and says why.
WAIT = 4
SOURCE = "engine"  # the name of a digest of our own files


class Remote:
    """The ranks of one engine, and what lives there.

    Attributes:
        worlds, contexts: pictures of them that somebody still has, by number.
        journal: what brings the worlds back.
        agreed: what all ranks run.
    """

    started: Started

    def __init__(self, source: ModelSource, parallel: ParallelConfig, placement: Placement, run: Torchrun | None):
        self.source, self.parallel, self.placement, self.run = source, parallel, placement, run
        self.worlds: weakref.WeakValueDictionary[int, FarWorld] = weakref.WeakValueDictionary()
        self.contexts: weakref.WeakValueDictionary[int, FarContext] = weakref.WeakValueDictionary()
        self.numbers, self.dropped = itertools.count(), deque[int]()
        self.journal = Journal(parallel.snapshot_every)
        self.agreed: dict[str, str] = {}

    def start(self) -> dict[str, Any]:
        """Start ranks that load the model, see that all run the same, and let them form a group.

        Returns:
            what a caller needs to know of the model (see `desk.model_facts`).

        Raises:
            ValueError: ranks differ, or run something else than those before.
        """
        self.started = start(self.placement, self.parallel.timeout, self.run)
        crew, ranks = self.started.crew, self.placement.ranks
        weakref.finalize(self, crew.end, "it was dropped", True)
        try:
            told = [self.read(m) for m in crew.ask(self.write("load", {"source": self.source.to_dict()}))]
            facts = [each["agreed"] for each in told]
            check_same(facts)
            self.agreed = self.agreed or facts[0]
            check_same([self.agreed, facts[0]], before=True)
            if ranks > 1:
                group = {"backend": self.placement.backend, "ranks": ranks, "timeout": WAIT * self.parallel.timeout}
                crew.ask(self.write("join", group | {"place": self.started.place}))
        except BaseException:
            crew.end()
            raise
        return told[0]["model"]

    def begin(self, **arguments: Any) -> None:
        """Engines without worlds on all ranks (see `Desk.on_begin`)."""
        answers = self.started.crew.ask(self.write("begin", arguments))
        check_same([self.read(message)["agreed"] for message in answers])

    def ask(self, op: str, **arguments: Any) -> Any:
        """What the ranks make of a request."""
        return self.read(self._asked(op, arguments))

    def make(self, op: str, count: int = 1, **arguments: Any) -> list[FarWorld]:
        """New worlds of a request that is told their numbers."""
        keys = [next(self.numbers) for _ in range(count)]
        told = self._asked(op, arguments | {"keys": keys}).told["worlds"]
        return [self._picture(key, told[str(key)]) for key in keys]

    def context(self, sources: Sequence[dict[str, Tensor]]) -> FarContext:
        """A context that all ranks make of its sources, those of its last blocks after its own."""
        key, ending = next(self.numbers), tuple(Context((), None, source) for source in sources[1:])
        self._asked("contextualise", {"key": key, "sources": list(sources)})
        made = self.contexts[key] = FarContext((), None, sources[0], ending, key)
        weakref.finalize(made, self.dropped.append, key).atexit = False
        return made

    def close(self, world: World) -> None:
        """Close a world; where the ranks are gone, the one that they would be given back."""
        if self.started.crew.lost:
            self.journal.add(self.write("close", {"worlds": [world]}), [])
        else:
            self._asked("close", {"worlds": [world]})
        world.open = False

    def checkpoint(self) -> None:
        """Begin the journal anew, if it is due."""
        if self.journal.due:
            self.journal.begin(self.snapshots())

    def snapshots(self) -> dict[int, bytes]:
        """Every open world as bytes, by number."""
        there = {key: world for key, world in sorted(self.worlds.items()) if world.open}
        return dict(zip(there, self.ask("snapshot", worlds=list(there.values())), strict=True)) if there else {}

    def reshard(self, **arguments: Any) -> None:
        """Begin anew with other arguments, with the same worlds."""
        held = self.snapshots()
        self.begin(**arguments)
        self._revive(held)
        self.journal.begin(held)

    def recover(self, **arguments: Any) -> None:
        """Start new ranks in place of those that are gone, and bring the worlds back if there is a journal.

        Args:
            arguments: to begin with, as before.
        """
        self.started.crew.end()
        self.start()
        self.begin(**arguments)
        if not self.journal.every:
            for world in list(self.worlds.values()):
                world.open = False
            return
        self._revive(self.journal.worlds)
        for message, _ in self.journal.since:
            self._send(message)

    def _revive(self, worlds: Mapping[int, bytes]) -> None:
        """Give ranks that have neither all contexts and these worlds, under the numbers they had."""
        for key, context in sorted(self.contexts.items()):
            sources = [context.source, *(last.source for last in context.ending)]
            self._send(self.write("contextualise", {"key": key, "sources": sources}))
        for key, blob in worlds.items():
            self._send(self.write("restore", {"keys": [key], "blob": blob}))

    def _asked(self, op: str, arguments: dict[str, Any]) -> Message:
        """Rank 0's answer; pictures of worlds follow what became of them."""
        message = self.write(op, arguments)
        answer = self._send(message)
        if op in CHANGING:
            self.journal.add(message, list(self.contexts.values()))
        for key, facts in answer.told["worlds"].items():
            if int(key) in self.worlds:
                self.worlds[int(key)].follow(facts)
        return answer

    def _send(self, message: Message) -> Message:
        op = message.told["op"]
        return self.started.crew.ask(message, alone=op in ALONE, together=op in TOGETHER)[0]

    def _picture(self, key: int, facts: dict[str, Any]) -> FarWorld:
        world = self.worlds[key] = FarWorld(key, facts["seed"], lambda key: self.ask("latents", key=key))
        world.follow(facts)
        return world

    def write(self, op: str, arguments: dict[str, Any]) -> Message:
        writer = Writer(self._name)
        told = writer.write(arguments)
        dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
        return Message({"op": op, "arguments": told, "dropped": dropped}, writer.tensors)

    def read(self, message: Message) -> Any:
        return Reader(message.tensors, self._find).read(message.told.get("value"))

    def _name(self, value: World | Context) -> Name:
        """A number in place of a world or a context.

        Raises:
            ValueError: it lives elsewhere.
        """
        if isinstance(value, FarWorld) and self.worlds.get(value.key) is value:
            return {"world": value.key, "variables": [float(x) for x in value.variables]}
        if isinstance(value, FarContext) and self.contexts.get(value.key) is value:
            return {"context": value.key}
        raise ValueError(f"a {type(value).__name__.removeprefix('Far').lower()} of another engine: expected this one's")

    def _find(self, name: Name) -> World | Context:
        return self.worlds[name["world"]] if "world" in name else self.contexts[name["context"]]


def check_same(facts: Sequence[Mapping[str, str]], before: bool = False) -> None:
    """Raise ValueError unless all ranks run the same.

    Args:
        before: the first facts are of the ranks that there were before; our own files may be others since.
    """
    first, *others = facts
    for number, other in enumerate(others, start=not before):
        for name, value in other.items():
            if value != first.get(name) and not (before and name == SOURCE):
                whom = "the ranks before ran" if before else "rank 0 runs"
                raise ValueError(
                    f"rank {number} runs {name} {value!r}, {whom} {first.get(name)!r}: give all ranks the same model, "
                    "versions and arguments"
                )
