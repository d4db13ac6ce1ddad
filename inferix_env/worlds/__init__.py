"""Shipped worlds, and how a name or a path becomes one. Weights are immutable and shared within a process.

A world is a folder: world.json (the card), model.safetensors, starts.npz (openings of real episodes); or a published
checkpoint, which is found and opened by the engine.
"""

from __future__ import annotations

import weakref
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from engine import WorldModel

HERE = Path(__file__).parent
# Published models that are in use, and the one that was asked for last.
PUBLISHED: weakref.WeakValueDictionary[tuple, WorldModel] = weakref.WeakValueDictionary()
LAST: deque[WorldModel] = deque(maxlen=1)


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
    raise ValueError(
        f"no world {str(world)!r}: expected one of {shipped()}, a folder with world.json, or a published checkpoint "
        "together with preset="
    )


def model(folder: Path, device: str, dtype: torch.dtype | str | None) -> WorldModel:
    """The world's model, loaded once for each (folder, device, dtype) and again if the file changes."""
    import engine

    return _load(engine.load, folder, device, dtype, (folder / "model.safetensors").stat().st_mtime_ns)


def published(source: str | Path, device: str, dtype: torch.dtype | str | None, **extras: Any) -> WorldModel:
    """The model of a published checkpoint (see `engine.load`), loaded once for each set of arguments and again if its
    file changes. Those that an env has are shared; of the others, which are large, only the last one is kept.

    Raises:
        ValueError: as `engine.load` does.
    """
    import engine

    path = Path(source).expanduser().resolve()
    found = path if path.exists() else str(source)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    key = (found, device, str(dtype), stamp, *sorted(extras.items()))
    made = PUBLISHED.get(key)
    if made is None:
        made = PUBLISHED[key] = engine.load(found, device, dtype, **extras)
    LAST.append(made)
    return made


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
