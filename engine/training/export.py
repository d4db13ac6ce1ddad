"""Turn a run into a world folder: card, weights, real start frames, moments amid real episodes.

Knows data, spec and loading; does not train.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.actions import action_spec
from engine.loading import Parts, save_world
from engine.spec import VariableSpec, WorldSpec
from engine.training.data import TERMINATED, Shards

# More distinct changes than this become quantiles.
MOST_CHANGES = 64
# Moments amid episodes that a world is written with, and the quality of their pictures (39 dB).
MIDWAY, JPEG_QUALITY = 512, 90
# Rows before an event that a moment of the second half may lie.
SHORTLY = 12


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


def write_starts(path: Path, shards: Shards, count: int, frames: int) -> None:
    """Keep the openings of `count` episodes, evenly spread over the data: their first `frames` frames.

    Written as frames uint8 [count, K, H, W, 3], encoded actions [count, K, A] (row k led to frame k, zeros at the
    first) and variables [count, K, V].

    Raises:
        ValueError: no episode has that many frames with pictures.
    """
    valid = shards.column("valid").astype(bool)
    lengths = np.diff(shards.starts) - ~valid[shards.starts[1:] - 1]
    long = shards.starts[:-1][lengths >= frames]
    if not len(long):
        raise ValueError(f"no episode has {frames} frames to start from: lower --start-frames")
    chosen = long[np.linspace(0, len(long) - 1, min(count, len(long))).astype(int)]
    rows = chosen[:, None] + np.arange(frames)
    actions = action_spec(shards.metadata["actions"]).encode_rows(shards.column("actions"))[rows]
    actions[:, 0] = 0
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        temporary,
        frames=np.stack([shards.frames(int(row), int(row) + frames) for row in chosen]),
        actions=actions,
        variables=shards.column("variables")[rows],
    )
    os.replace(temporary, path)


def write_midway(path: Path, shards: Shards, count: int, frames: int) -> None:
    """Keep `count` moments amid episodes: the `frames` frames up to each.

    Half of them are evenly spread over all rows of the data, half over those that come shortly (1 to `SHORTLY` rows)
    before a named variable changes or the episode ends: what matters is rare, and a dream is truest near its start.

    Written as `jpeg` uint8 [bytes], the pictures one after another, `offsets` int64 [count * K + 1] into it, and
    actions [count, K, A] and variables [count, K, V] as for `write_starts`. No moment is the last of its episode.

    Raises:
        ValueError: no episode has that many frames, and one more.
    """
    chosen = moments_of(shards, count, frames)
    rows = chosen[:, None] + np.arange(1 - frames, 1)
    actions = action_spec(shards.metadata["actions"]).encode_rows(shards.column("actions"))[rows]
    actions[:, 0] = 0
    pictures = [jpeg(frame) for row in chosen for frame in shards.frames(int(row) + 1 - frames, int(row) + 1)]
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        temporary,
        jpeg=np.frombuffer(b"".join(pictures), np.uint8),
        offsets=np.cumsum([0, *map(len, pictures)]),
        actions=actions,
        variables=shards.column("variables")[rows],
    )
    os.replace(temporary, path)


def moments_of(shards: Shards, count: int, frames: int) -> np.ndarray:
    """The rows of `count` moments, see `write_midway`."""
    valid = shards.column("valid").astype(bool)
    lengths = np.diff(shards.starts)
    first = np.repeat(shards.starts[:-1], lengths)
    last = np.repeat(shards.starts[1:] - 1 - ~valid[shards.starts[1:] - 1], lengths)
    here = np.arange(len(shards))
    found = (here - first >= frames - 1) & (here < last)
    if not found.any():
        raise ValueError(f"no episode has {frames + 1} frames to start amid: lower --start-frames")
    eventful = np.flatnonzero(found & before_events(shards, SHORTLY))
    apart = min(count // 2, len(eventful))
    return np.concatenate([spread(np.flatnonzero(found), count - apart), spread(eventful, apart)])


def before_events(shards: Shards, within: int) -> np.ndarray:
    """Rows [T] after which, at most `within` rows on and in the same episode, a variable changes or the game ends."""
    variables, valid = shards.column("variables"), shards.column("valid").astype(bool)
    event = shards.column("ends") == TERMINATED
    event[1:] |= (variables[1:] != variables[:-1]).any(axis=1) & valid[1:]
    event[shards.starts[:-1]] = False
    at = np.append(np.flatnonzero(event), len(event) + within)
    ahead = at[np.searchsorted(at, np.arange(len(event)), side="right")]
    stop = np.repeat(shards.starts[1:], np.diff(shards.starts))
    return (ahead - np.arange(len(event)) <= within) & (ahead < stop)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of these rows, or all where there are fewer, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def jpeg(frame: np.ndarray) -> bytes:
    """A frame uint8 [H, W, 3] as a JPEG file with full colour resolution."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def export(
    out: Path, spec: WorldSpec, modules: Parts, data: Path, card: dict[str, Any], num_starts: int, start_frames: int
) -> None:
    """Write the world folder `out`; the card's spec and data set description are filled in here."""
    shards = Shards(data, "train")
    out.mkdir(parents=True, exist_ok=True)
    write_starts(out / "starts.npz", shards, num_starts, start_frames)
    write_midway(out / "midway.npz", shards, MIDWAY, start_frames)
    described = {"rows": len(shards), "episodes": len(shards.starts) - 1, **shards.metadata["config"]}
    described.pop("workers", None)
    save_world(out, {**card, "spec": spec.to_dict(), "data": described}, modules)
