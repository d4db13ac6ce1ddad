"""Turn a run into a world folder: card, weights, real start frames.

Knows data, spec and loading; does not train.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from engine.loading import Parts, save_world
from engine.spec import VariableSpec, WorldSpec
from engine.training.data import Shards

# More distinct changes than this become quantiles.
MOST_CHANGES = 64


def variables_of(shards: Shards) -> tuple[VariableSpec, ...]:
    """Named variables of a data set: their ranges, and the changes a step makes to them."""
    names = shards.metadata["variables"]
    if not names:
        return ()
    values, valid = shards.column("variables"), shards.column("valid").astype(bool)
    follows = valid.copy()
    follows[shards.starts[:-1]] = False
    moved = values[follows] - values[np.nonzero(follows)[0] - 1]
    specs = []
    for i, name in enumerate(names):
        low, high = float(values[valid, i].min()), float(values[valid, i].max())
        specs.append(VariableSpec(name, low, high, changes_of(moved[:, i])))
    return tuple(specs)


def changes_of(moved: np.ndarray) -> tuple[float, ...]:
    """Every change seen, or `MOST_CHANGES` quantiles of them; "no change" is always among them."""
    seen = np.unique(moved)
    if len(seen) > MOST_CHANGES:
        seen = np.unique(np.quantile(moved, np.linspace(0, 1, MOST_CHANGES - 1)))
    return tuple(float(x) for x in np.unique(np.append(seen, 0.0)))


def write_starts(path: Path, shards: Shards, count: int) -> None:
    """Keep the first frames of `count` episodes, evenly spread over the data: uint8 [count, 1, H, W, 3]."""
    rows = shards.starts[:-1][np.linspace(0, len(shards.starts) - 2, min(count, len(shards.starts) - 1)).astype(int)]
    frames = np.stack([shards.frames(int(row), int(row) + 1) for row in rows])
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, frames=frames, variables=shards.column("variables")[rows][:, None])
    os.replace(temporary, path)


def export(out: Path, spec: WorldSpec, modules: Parts, data: Path, card: dict[str, Any], num_starts: int) -> None:
    """Write the world folder `out`; the card's spec and data set description are filled in here."""
    shards = Shards(data, "train")
    out.mkdir(parents=True, exist_ok=True)
    write_starts(out / "starts.npz", shards, num_starts)
    described = {"rows": len(shards), "episodes": len(shards.starts) - 1, **shards.metadata["config"]}
    described.pop("workers", None)
    save_world(out, {**card, "spec": spec.to_dict(), "data": described}, modules)
