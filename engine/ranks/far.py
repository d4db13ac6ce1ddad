"""What engines take and return, as JSON and named tensors, and the caller's picture of worlds that live elsewhere.

Worlds and contexts stay where the model is: they travel as numbers. A caller's world tells its named variables each
time, because a caller may set them. Knows the engine's values; runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.conditioning import Condition, Context
from engine.kv.policy import PageTable
from engine.noise import SeededNoise
from engine.world import Block, Start, World

VALUES: dict[str, type] = {x.__name__: x for x in (Start, Condition, Block)}
# What a caller knows of a world beside its named variables.
FACTS = ("block", "ended", "open")


class FarWorld(World):
    """A world that lives with workers: what a caller reads of one.

    Attributes:
        key: its number there.
        table: of it, the length and origin of the history; the pages are the workers'.
        clean: its latents, fetched when they are read.
    """

    clean: Tensor | None

    def __init__(self, key: int, seed: int, fetch: Callable[[int], Tensor | None]):
        self.key, self.fetch, self.clean = key, fetch, None
        super().__init__(SeededNoise(seed), PageTable(), np.zeros(0))

    @property
    def latents(self) -> Tensor | None:
        if self.clean is None:
            self.clean = self.fetch(self.key)
        return self.clean

    @latents.setter
    def latents(self, value: Tensor | None) -> None:
        self.clean = value

    def follow(self, facts: dict[str, Any]) -> None:
        """Take over what became of it."""
        for name in FACTS:
            setattr(self, name, facts[name])
        self.table.length, self.table.origin = facts["length"], facts["origin"]
        self.variables, self.latents = np.array(facts["variables"], np.float64), None


@dataclass(frozen=True, eq=False)
class FarContext(Context):
    """A prompt or a picture that workers have: its number there, and what it is made of."""

    key: int = -1


def facts_of(world: World) -> dict[str, Any]:
    """What `FarWorld.follow` takes."""
    known = {name: getattr(world, name) for name in FACTS}
    place = {"length": world.table.length, "origin": world.table.origin}
    return known | place | {"variables": world.variables.tolist(), "seed": world.noise.seed}


Name = dict[str, Any]


def unnamed(value: World | Context) -> Name:
    """For ranks, whose answers hold no worlds."""
    raise ValueError(f"a {type(value).__name__} does not travel")


class Writer:
    """Values -> plain JSON, and the tensors that it names.

    Args:
        name: of a world or a context.
    """

    def __init__(self, name: Callable[[World | Context], Name] = unnamed):
        self.name, self.tensors = name, dict[str, Tensor]()

    def write(self, value: Any) -> Any:
        """Raises ValueError on what does not travel, such as an array of objects."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, World | Context):
            return {"known": self.name(value)}
        if type(value).__name__ in VALUES:
            return {type(value).__name__: {x.name: self.write(getattr(value, x.name)) for x in fields(value)}}
        if isinstance(value, list):
            return [self.write(x) for x in value]
        if isinstance(value, tuple):
            return {"tuple": [self.write(x) for x in value]}
        if isinstance(value, dict):
            return {"dict": [[self.write(key), self.write(x)] for key, x in value.items()]}
        return self._array(value)

    def _array(self, value: Any) -> dict[str, str]:
        if isinstance(value, Tensor):
            return {"tensor": self._kept(value)}
        if isinstance(value, bytes):
            return {"bytes": self._kept(torch.from_numpy(np.frombuffer(value, np.uint8).copy()))}
        if isinstance(value, np.generic):
            return self.write(value.item())
        try:
            return {"array": self._kept(torch.from_numpy(np.require(value, None, ["C", "W"])))}
        except TypeError as error:
            raise ValueError(f"{type(value).__name__} {value!r:.80} cannot be sent to workers: {error}") from None

    def _kept(self, x: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = x
        return name


class Reader:
    """The way back from `Writer`.

    Args:
        find: the world or context of a name.
    """

    def __init__(self, tensors: dict[str, Tensor], find: Callable[[Name], World | Context]):
        self.kinds: dict[str, Callable[[Any], Any]] = {
            "known": find,
            "tuple": lambda value: tuple(self.read(x) for x in value),
            "dict": lambda value: {self.read(key): self.read(x) for key, x in value},
            "tensor": lambda name: tensors[name],
            "array": lambda name: tensors[name].numpy(),
            "bytes": lambda name: tensors[name].numpy().tobytes(),
        }

    def read(self, told: Any) -> Any:
        if isinstance(told, list):
            return [self.read(x) for x in told]
        if not isinstance(told, dict):
            return told
        [(kind, value)] = told.items()
        if kind in VALUES:
            return VALUES[kind](**{name: self.read(x) for name, x in value.items()})
        return self.kinds[kind](value)
