"""Low-rank adapters (PEFT's files): added to weights as these are read, or run beside the linears of a model.

Beside them is what LongLive does and what its numbers were recorded with; merged costs nothing at run time and
differs by the rounding of the sum. Knows linears by name, not which model they are in.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoints.files import open_tensors
from engine.checkpoints.places import LORAS
from engine.checkpoints.tensors import Entry, Shape, Tensors
from engine.swap import M, swap_linears

NAME = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """What is added to a linear's weight [out, in]: scale * up [out, r] @ down [r, in]."""

    down: Entry
    up: Entry
    scale: float

    @property
    def shape(self) -> Shape:
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True)
class Lora:
    """Adapters by the name of their module."""

    adapters: dict[str, Adapter]
    source: str


def read_lora(path: str | Path, alpha: float | None = None, prefer: str | Sequence[str] = ("generator_lora",)) -> Lora:
    """Open a PEFT adapter; shapes are checked, no data is read.

    Args:
        path: as in `open_tensors`.
        alpha: the products are scaled by alpha / rank; by default alpha is the rank.
        prefer: top key to look under, where the names do not lie flat.

    Raises:
        ValueError: it cannot be opened, has other names than PEFT's, or holds half a pair or pairs of unequal rank.
    """
    tensors = open_tensors(path, prefer, LORAS)
    sides: dict[str, dict[str, Entry]] = {}
    for name, entry in tensors.entries.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{tensors.source}: {name}: expected <module>.lora_A.weight or <module>.lora_B.weight")
        pair = sides.setdefault(match["module"], {})
        if match["side"] in pair:
            raise ValueError(f"{tensors.source} holds two adapters of {match['module']}: keep one")
        pair[match["side"]] = entry
    return Lora({name: _adapter(name, pair, alpha, tensors.source) for name, pair in sides.items()}, tensors.source)


def _adapter(module: str, pair: dict[str, Entry], alpha: float | None, source: str) -> Adapter:
    for side in "AB":
        if side not in pair:
            raise ValueError(f"{source}: {module} has no lora_{side}.weight")
    down, up = pair["A"], pair["B"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        shapes = f"lora_A {list(down.shape)} and lora_B {list(up.shape)}"
        raise ValueError(f"{source}: {module} has {shapes}; expected [rank, in] and [out, rank] of one rank")
    return Adapter(down, up, 1.0 if alpha is None else alpha / down.shape[0])


def merged(weights: Tensors, lora: Lora) -> Tensors:
    """The same tensors, with each adapter added to its weight, in fp32, when that is read.

    Raises:
        ValueError: an adapter has no weight here, or one of another shape.
    """
    linears = {name.removesuffix(".weight"): shape for name, shape in weights.shapes.items() if len(shape) == 2}
    _check(lora, linears)
    changed = {f"{m}.weight": _sum(weights.entries[f"{m}.weight"], a) for m, a in lora.adapters.items()}
    return Tensors({**weights.entries, **changed}, f"{weights.source} with {lora.source}")


def _sum(weight: Entry, adapter: Adapter) -> Entry:
    def read() -> Tensor:
        up, down = adapter.up.read().float(), adapter.down.read().float()
        return torch.addmm(weight.read().float(), up, down, alpha=adapter.scale).to(weight.dtype)

    return replace(weight, read=read)


class LoraLinear(nn.Module):
    """A linear with an adapter beside it: linear(x) + scale * up(down(x)). All three are plain linears."""

    def __init__(self, linear: nn.Linear, adapter: Adapter):
        super().__init__()
        self.linear, self.scale = linear, adapter.scale
        self.down, self.up = (_linear(entry.read(), linear.weight) for entry in (adapter.down, adapter.up))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x)) * self.scale


def _linear(weight: Tensor, like: Tensor) -> nn.Linear:
    """A linear without a bias, in the dtype and place of another's weight."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.to(like.device, like.dtype, copy=True), requires_grad=False)
    return made


def apply_lora(module: M, lora: Lora) -> M:
    """A copy of a filled module, sharing its tensors, with every adapter beside its linear.

    Raises:
        ValueError: an adapter has no linear here, or one of another shape.
    """
    linears = {name: child for name, child in module.named_modules() if type(child) is nn.Linear}
    _check(lora, {name: tuple(linear.weight.shape) for name, linear in linears.items()})
    adapters = {id(linears[name]): adapter for name, adapter in lora.adapters.items()}

    def make(linear: nn.Module) -> nn.Module:
        assert isinstance(linear, nn.Linear)
        return LoraLinear(linear, adapters[id(linear)]) if id(linear) in adapters else linear

    return swap_linears(module, make)


def _check(lora: Lora, linears: Mapping[str, Shape]) -> None:
    problems = [line for name, a in lora.adapters.items() for line in _problems(name, a.shape, linears)]
    if problems:
        raise ValueError(f"{lora.source} does not fit the model:\n  " + "\n  ".join(problems))


def _problems(name: str, shape: Shape, linears: Mapping[str, Shape]) -> list[str]:
    if name in linears:
        fits = shape == linears[name]
        return [] if fits else [f"the adapter of {name} is for {list(shape)}, its weight is {list(linears[name])}"]
    return [f"no linear {name}" + _nearest(name, linears)]


def _nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f" (nearest: {near[0]})" if near else ""
