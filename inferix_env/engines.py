"""Engines shared by the envs of a process: same weights and settings, one engine; worlds stay apart.

An env claims as many seats as it has worlds, and the engine grows accordingly. The seats of an env that was closed or
dropped are free again: its worlds are closed when seats are next claimed, not when the garbage collector comes by, for
that may be in the middle of a step. An engine on ranks of its own ends when the last env that has it is closed. Envs
that share an engine are for one thread. Knows the engine; knows nothing of Gymnasium.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from engine import (
    AnyEngine,
    Context,
    Engine,
    ModelSource,
    ParallelConfig,
    PoolFull,
    ShardedEngine,
    Start,
    World,
    WorldModel,
    prompt_context,
    widen,
)

Made = TypeVar("Made")
# Prompts and scenes that stay at an engine though no world has them any more. One may take 100 MB.
RECENT = 4


@dataclass(frozen=True)
class Sharded:
    """A model that ranks of its own are to load and run.

    Attributes:
        stamp: tells the files of a world from those that it had before.
    """

    source: ModelSource
    parallel: ParallelConfig
    device: str
    stamp: int = 0


class SharedEngine:
    """An engine, the seats taken at it, the worlds of envs that left, and what was made of prompts and pictures."""

    def __init__(self, model: WorldModel | Sharded, num_seats: int, options: dict[str, Any]):
        self.model = model  # alive as long as this is, so that its id is nobody else's
        self.engine = engine_of(model, num_seats, options)
        self.num_seats = 0
        self.left: deque[list[World | None]] = deque()
        self.contexts: weakref.WeakValueDictionary[str, Context] = weakref.WeakValueDictionary()
        self.recent: deque[Context] = deque(maxlen=RECENT)
        self.scenes: OrderedDict[Hashable, Any] = OrderedDict()

    def claim(self, num_seats: int) -> None:
        self.sweep()
        self.engine.grow(self.num_seats + num_seats)
        self.num_seats += num_seats

    def sweep(self) -> None:
        """Close the worlds of those who left, and count their seats as free."""
        while self.left:
            worlds = self.left.popleft()
            for world in worlds:
                if world is not None:
                    self.engine.close(world)
            self.num_seats -= len(worlds)

    def rest(self) -> None:
        """End the ranks of an engine at which nobody sits any more."""
        if isinstance(self.engine, ShardedEngine):
            self.sweep()
            if not self.num_seats:
                self.engine.shutdown()


def engine_of(model: WorldModel | Sharded, num_seats: int, options: dict[str, Any]) -> AnyEngine:
    """An engine in this process, or on ranks of its own."""
    if isinstance(model, Sharded):
        return ShardedEngine(model.source, model.parallel, model.device, max_worlds=num_seats, **options)
    return Engine(model, max_worlds=num_seats, **options)


def recover(engine: AnyEngine) -> None:
    """See `ShardedEngine.recover`."""
    if not isinstance(engine, ShardedEngine):
        raise RuntimeError("recover: this env's engine has no ranks of its own; make the env with parallel=")
    engine.recover()


# By model and settings, while an env holds them.
ENGINES: weakref.WeakValueDictionary[tuple, SharedEngine] = weakref.WeakValueDictionary()


def begin_forked() -> None:
    """A forked process (of an AsyncVectorEnv) has worlds of its own, and one thread: OpenMP's do not survive a fork."""
    ENGINES.clear()
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=begin_forked)


class Seats:
    """One env's places at a shared engine, each with a world or empty.

    Args:
        model: what `worlds.model` returns, or what ranks are to load.
        num_seats: how many worlds the env may have open.
        options: of the engine, hashable: num_steps, policy, deterministic, kv_dtype.

    Raises:
        ValueError: the engine does not take these options.
    """

    def __init__(self, model: WorldModel | Sharded, num_seats: int, **options: Any):
        key = (model if isinstance(model, Sharded) else id(model), *sorted(options.items()))
        shared = ENGINES.get(key)
        if shared is None or (isinstance(shared.engine, ShardedEngine) and shared.engine.lost):
            shared = ENGINES[key] = SharedEngine(model, num_seats, options)
        shared.claim(num_seats)
        self.shared, self.engine = shared, shared.engine
        self.worlds: list[World | None] = [None] * num_seats
        self.finalizer = weakref.finalize(self, shared.left.append, self.worlds)
        self.finalizer.atexit = False

    def prompt(self, text: str) -> Context:
        """What a prompt is to the world's layers: computed once while some world has it, or it is recent.

        Raises:
            ValueError: the world reads no prompts, or its text encoder is missing.
        """
        found = self.shared.contexts.get(text)
        if found is None:
            found = self.shared.contexts[text] = prompt_context(self.engine, text)
        if all(found is not context for context in self.shared.recent):
            self.shared.recent.append(found)
        return found

    def recall(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned when it was last asked for under this key, if that was recently."""
        scenes = self.shared.scenes
        if key not in scenes:
            scenes[key] = make()
        scenes.move_to_end(key)
        while len(scenes) > RECENT:
            scenes.popitem(last=False)
        return scenes[key]

    def open(self, seat: int, start: Start, seed: int) -> World:
        """Begin a world (see `Engine.open`) in place of the one that sits there."""
        self.close(seat)
        more = self.engine.pages_of(start) - self.engine.need
        if more > 0:  # a seat has room for what most worlds need; one that begins with a long video needs more
            widen(self.engine, self.engine.need + more)
        return self._sit(seat, self.engine.open(start, seed))

    def restore(self, seat: int, blob: bytes) -> World:
        """The world of a snapshot (see `Engine.restore`) in place of the one there, which a bad blob leaves alone."""
        try:
            world = self.engine.restore(blob)
        except PoolFull:  # the blob is good: only the seat is taken
            self.close(seat)
            world = self.engine.restore(blob)
        self.close(seat)
        return self._sit(seat, world)

    def fork(self, world: World, seats: Sequence[int], seeds: Sequence[int] | None = None) -> list[World]:
        """Forks of a world of this engine (see `Engine.fork`) in place of those that sit there."""
        for seat in seats:
            self.close(seat)
        forks = self.engine.fork(world, len(seats), seeds)
        return [self._sit(seat, fork) for seat, fork in zip(seats, forks, strict=True)]

    def close(self, seat: int) -> None:
        """Close the world that sits there, if one does."""
        world, self.worlds[seat] = self.worlds[seat], None
        if world is not None:
            self.engine.close(world)

    def leave(self) -> None:
        """Give the seats back, and the worlds with them. Leaving twice is fine."""
        if self.finalizer.alive:
            self.finalizer()
            self.shared.rest()

    def _sit(self, seat: int, world: World) -> World:
        self.worlds[seat] = world
        return world
