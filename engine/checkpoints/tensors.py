"""Tensors that are known before they are read: names, shapes and dtypes now, numbers when asked for.

Does not know where they come from (files.py) or what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor not read yet."""

    shape: Shape
    dtype: torch.dtype
    read: Callable[[], Tensor]


class Tensors(Mapping[str, Tensor]):
    """Tensors by name; `tensors[name]` reads one, every time anew.

    Args:
        entries: what there is.
        source: what to call it in an error: a path, most often.
    """

    def __init__(self, entries: Mapping[str, Entry], source: str):
        self.entries, self.source = dict(entries), source

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would read the tensor

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: entry.dtype for name, entry in self.entries.items()}

    @property
    def num_bytes(self) -> int:
        """Of all of them, as stored."""
        return sum(prod(entry.shape) * entry.dtype.itemsize for entry in self.entries.values())

    def renamed(self, rename: Callable[[str], str]) -> Tensors:
        """The same tensors under other names.

        Raises:
            ValueError: two tensors would have the same name.
        """
        taken: dict[str, str] = {}
        for name in self.entries:
            new = rename(name)
            if new in taken:
                raise ValueError(f"{self.source}: {taken[new]} and {name} are both {new}; it holds two sets of weights")
            taken[new] = name
        return Tensors({new: self.entries[name] for new, name in taken.items()}, self.source)


def entry_of(tensor: Tensor) -> Entry:
    """An entry of a tensor that is there already (or is mapped from a file)."""
    return Entry(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def in_memory(tensors: Mapping[str, Tensor], source: str = "tensors in memory") -> Tensors:
    """Plain tensors as `Tensors`."""
    return Tensors({name: entry_of(tensor) for name, tensor in tensors.items()}, source)
