"""One recursive swap of a model's linears, from outside: no layer knows that it happened. Weights are shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def swap_linears(module: M, make: Callable[[nn.Module], nn.Module], kinds: tuple[type, ...] = (nn.Linear,)) -> M:
    """A copy of a module tree that shares its tensors, with `make` of every module of the given kinds in its place."""
    linears = (m for m in module.modules() if type(m) in kinds)
    shared = {id(x): x for x in chain(module.parameters(), module.buffers(), linears)}
    made = copy.deepcopy(module, shared)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in kinds:
                setattr(parent, name, make(child))
    return made
