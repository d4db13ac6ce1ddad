"""Tensors of a published encoder: memory-mapped reading, a strict fit, and modules that are filled in place.

Reads one file, or one folder in the layout of the transformers library; knows no model.
"""

from __future__ import annotations

import difflib
import importlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
Module = TypeVar("Module", bound=nn.Module)


def require(module: str, purpose: str) -> Any:
    """A module of the extra `text`.

    Raises:
        ValueError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{purpose} needs {module}: pip install 'inferix-env[text]' ({error})") from None


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .pth, .pt or .bin file, by name. The file is mapped: only what is used is read.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights at {path}: expected a .safetensors or .pth file")
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds more than tensors, or is no checkpoint: expected torch.save of them") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from None
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{path} holds {describe(found)}, expected tensors by name")
    return dict(found)


def describe(found: Any) -> str:
    """What a checkpoint holds, in a few words."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    odd = [name for name, x in found.items() if not isinstance(x, Tensor)]
    return f"other things beside tensors, such as {odd[0]!r}"


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a folder as the transformers library writes it, sharded or not.

    Raises:
        ValueError: a file of it is missing or damaged.
    """
    config = read_json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return config, read_tensors(folder / "model.safetensors")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} has no weight_map: download the folder again")
    files = sorted(set(shards.values()))
    return config, {name: x for file in files for name, x in read_tensors(folder / file).items()}


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a JSON object")
    return found


def shape_of(tensors: Mapping[str, Tensor], name: str, ndim: int, what: str) -> tuple[int, ...]:
    """The shape of a tensor that sizes are read from.

    Raises:
        ValueError: it is missing, or has another number of axes.
    """
    if name not in tensors:
        near = difflib.get_close_matches(name, tensors, 1)
        hint = f"the nearest name is {near[0]}" if near else f"{len(tensors)} tensors are there, none named alike"
        raise ValueError(f"these are no weights of {what}: {name} is missing; {hint}")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim:
        raise ValueError(f"these are no weights of {what}: {name} is {list(shape)}, expected {ndim} axes")
    return shape


def check_fit(expected: Shapes, tensors: Mapping[str, Tensor], what: str) -> None:
    """Every tensor expected is there, in its shape, and no other.

    Raises:
        ValueError: lists what is missing, unexpected or of another shape, a line each.
    """
    lines = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in expected:
            lines.append(f"unexpected {name} {list(shape)}")
        elif shape != expected[name]:
            lines.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
    if lines:
        rest = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ValueError(f"these weights do not fit {what}:\n  " + "\n  ".join(lines[:20] + rest))


def assemble(
    build: Callable[[], Module],
    tensors: Mapping[str, Tensor],
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> Module:
    """A module that holds these tensors: built without memory, then given them one by one, so that it is never there
    twice. What needs no other device or dtype stays mapped to its file.

    Args:
        build: makes the module; called on the meta device.
        tensors: its state dict, complete.
        dtype: None keeps each tensor's own.
    """
    with torch.device("meta"):
        module = build()
    module.load_state_dict({name: x.to(device, dtype) for name, x in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)
