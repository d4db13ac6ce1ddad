"""Weights and the packages that run them: imported where they are used, and every tensor has to fit.

Knows files and packages; knows no metric.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def imported(module: str, purpose: str) -> Any:
    """A module of an optional package.

    Raises:
        ValueError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ValueError(f"{purpose} needs {package}: pip install 'inferix-env[metrics]' ({error})") from None


def tensors_of(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, by name; torch files are read as data, no code in them is run.

    Raises:
        ValueError: there is no such file, or it holds no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"weights {str(path)!r}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights {str(path)!r} cannot be read: {reason}") from None
    found = data.get("state_dict", data) if isinstance(data, Mapping) else data
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"weights {str(path)!r}: expected named tensors, found {type(found).__name__}")
    return {str(name).removeprefix("module."): x for name, x in found.items()}


def filled(model: nn.Module, path: str | Path, device: str) -> nn.Module:
    """The model with a file's tensors, on its device, for inference.

    Raises:
        ValueError: the file cannot be read, or its tensors are not just the model's.
    """
    tensors = tensors_of(path)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        kind = type(model).__name__
        raise ValueError(f"weights {str(path)!r} do not fit {kind}: {' '.join(lines)[:300]}") from None
    return model.to(device).eval().requires_grad_(False)


def pretrained(model_class: str, source: str | Path, device: str, purpose: str, **options: Any) -> nn.Module:
    """A model of transformers, from its folder or hub id, in float32.

    Args:
        model_class: its name in transformers.
        options: of `from_pretrained`.

    Raises:
        ValueError: transformers is missing, the source is not there or is another model.
    """
    made = getattr(imported("transformers", purpose), model_class)
    try:
        model, info = made.from_pretrained(str(source), output_loading_info=True, dtype=torch.float32, **options)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise ValueError(f"{purpose}: {str(source)!r} cannot be loaded as {model_class}: {reason}") from None
    wrong = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    if wrong:
        raise ValueError(
            f"{purpose}: {str(source)!r} is no {model_class}: {len(wrong)} tensors are missing or of another shape, "
            f"such as {wrong[0]}"
        )
    return model.to(device).eval().requires_grad_(False)
