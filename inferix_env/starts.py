"""From reset's options to where a world begins: shipped starts, the user's own footage, or one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine import Start, WorldSpec, check_start
from inferix_env import worlds
from inferix_env.midway import Moments, moments
from inferix_env.openings import Opening

OPTIONS = ("start", "starts", "frames", "actions", "variables", "image")
# Where shipped starts lie in their episodes.
POOLS = ("openings", "midway")


class Starts:
    """Where the episodes of a world folder begin; a start's last frame is seen as often as a step has frames."""

    def __init__(self, folder: Path, spec: WorldSpec, frames_per_step: int):
        self.folder, self.spec, self.frames_per_step = folder, spec, frames_per_step

    def opening(self, options: Mapping[str, Any], rng: np.random.Generator) -> Opening:
        """See `make_start`."""
        start = make_start(options, self.folder, self.spec, rng)
        return Opening(start, start.frames[-1:].repeat(self.frames_per_step, axis=0))


def make_start(options: Mapping[str, Any], folder: Path, spec: WorldSpec, rng: np.random.Generator) -> Start:
    """Where the next episode begins.

    Args:
        options: {} draws a shipped start with `rng`; {"start": i} takes the i-th. Those are openings of episodes;
            {"starts": "midway"} has moments amid them instead, drawn or the i-th. {"frames": uint8 [K, H, W, 3],
            "actions": K - 1 actions} continues from footage; {"image": path} from one picture. Beside any of them
            {"variables": {name: value}} sets named variables as they stand at its last frame.

    Raises:
        ValueError: unknown or contradictory options, or values that do not fit the world.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"reset options {unknown}: expected some of {list(OPTIONS)}, or 'snapshot'")
    given = [key for key in ("start", "starts", "frames", "image") if key in options]
    if len(given) > 1 and given != ["start", "starts"]:
        raise ValueError(f"reset options {sorted(options)}: give one of start (or starts), frames and image")
    if "frames" in options:
        start = from_footage(options, folder, spec)
    elif "image" in options:
        start = from_image(options, folder, spec)
    else:
        start = from_shipped(options.get("start"), options.get("starts", "openings"), folder, rng)
        if "variables" in options:
            start = replace(start, variables=named_rows(options["variables"], start.variables, spec))
    check_start(start, spec)
    return start


def from_shipped(index: Any, pool: Any, folder: Path, rng: np.random.Generator) -> Start:
    """A start of one of the POOLS, the i-th or drawn."""
    if pool not in POOLS:
        raise ValueError(f"starts {pool!r}: expected one of {list(POOLS)}")
    shipped = moments(folder) if pool == "midway" else worlds.starts(folder)
    count = len(shipped) if isinstance(shipped, Moments) else len(shipped[0])
    drawn = int(rng.integers(count))  # drawn even where an index is given: the same draws follow
    if index is None:
        index = drawn
    if not isinstance(index, int | np.integer) or not 0 <= index < count:
        raise ValueError(f"start {index!r}: expected an integer from 0 to {count - 1}")
    if isinstance(shipped, Moments):
        return shipped.start(int(index))
    return Start(*(column[index] for column in shipped))


def from_footage(options: Mapping[str, Any], folder: Path, spec: WorldSpec) -> Start:
    frames = np.asarray(options["frames"])
    if frames.ndim != 4 or len(frames) < 1:
        raise ValueError(
            f"frames are {frames.dtype} {list(frames.shape)}: expected uint8 [K, {spec.frame[0]}, {spec.frame[1]}, 3]"
        )
    actions = list(options.get("actions", ()))
    if len(actions) != len(frames) - 1:
        raise ValueError(
            f"{len(actions)} actions for {len(frames)} frames: expected {len(frames) - 1}, one between each two"
        )
    encoded = no_actions(len(frames), spec)
    for i, action in enumerate(actions):
        encoded[i + 1] = spec.actions.encode(action)
    return Start(frames, encoded, variable_rows(options, len(frames), folder, spec))


def from_image(options: Mapping[str, Any], folder: Path, spec: WorldSpec) -> Start:
    path = Path(options["image"]).expanduser()
    if "actions" in options:
        raise ValueError("actions go with frames, not with one image")
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB").resize((spec.frame[1], spec.frame[0]), Image.Resampling.BOX)
    except (FileNotFoundError, IsADirectoryError, UnidentifiedImageError) as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from None
    frames = np.asarray(picture)[None].repeat(spec.block, axis=0)
    return Start(frames, no_actions(len(frames), spec), variable_rows(options, len(frames), folder, spec))


def no_actions(count: int, spec: WorldSpec) -> np.ndarray:
    return np.zeros((count, spec.actions.width), np.float32)


def variable_rows(options: Mapping[str, Any], count: int, folder: Path, spec: WorldSpec) -> np.ndarray:
    """Raw variables [count, V]: as given, by name, or as the shipped starts have them."""
    usual = worlds.starts(folder)[2][0, 0] if spec.variables else np.zeros(0)
    return named_rows(options.get("variables", {}), np.tile(usual, (count, 1)), spec)


def named_rows(given: Any, rows: np.ndarray, spec: WorldSpec) -> np.ndarray:
    """Raw variables [K, V], those that are given by name in place of their columns."""
    names = [v.name for v in spec.variables]
    if not isinstance(given, Mapping) or set(given) - set(names):
        raise ValueError(f"variables {given!r}: expected a mapping with some of the names {names}")
    made = np.array(rows, np.float64)
    try:
        for name, value in given.items():
            made[:, names.index(name)] = np.broadcast_to(np.asarray(value, np.float64), len(rows))
    except ValueError:
        raise ValueError(f"variables {given!r}: expected a number, or {len(rows)} of them, for each name") from None
    return made
