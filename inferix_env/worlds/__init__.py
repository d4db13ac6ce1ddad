"""Shipped worlds, and how a name or a path becomes one. Weights are immutable and shared within a process.

A world is a folder: world.json (the card), model.safetensors, starts.npz (openings of real episodes).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from engine import WorldModel

HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the worlds in this package."""
    return sorted(path.parent.name.replace("_", "-") for path in HERE.glob("*/world.json"))


def find(world: str | Path) -> Path:
    """The folder of a shipped world's name, or of a path.

    Raises:
        ValueError: there is no such world; lists the shipped ones.
    """
    named = HERE / str(world).replace("-", "_")
    for folder in (named, Path(world).expanduser()):
        if (folder / "world.json").is_file():
            return folder.resolve()
    raise ValueError(f"no world {str(world)!r}: expected one of {shipped()}, or a folder with world.json")


def model(folder: Path, device: str, dtype: torch.dtype | str | None) -> WorldModel:
    """The world's model, loaded once for each (folder, device, dtype) and again if the file changes."""
    import engine

    return _load(engine.load, folder, device, dtype, (folder / "model.safetensors").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(load, folder: Path, device: str, dtype, stamp: int) -> WorldModel:
    return load(folder, device, dtype)


@lru_cache(maxsize=4)
def starts(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Openings of real episodes: uint8 frames [M, K, H, W, 3], encoded actions [M, K, A], variables [M, K, V].

    Raises:
        ValueError: the world has none, or not all of it.
    """
    path = folder / "starts.npz"
    if not path.is_file():
        raise ValueError(f"{folder} has no starts.npz: give reset options 'frames' or 'image' instead")
    with np.load(path) as data:
        missing = sorted({"frames", "actions", "variables"} - set(data.files))
        if missing:
            raise ValueError(f"{path} lacks {missing}: write the world again with python -m engine.training")
        return data["frames"], data["actions"], data["variables"]
