"""Recorded episodes: what agents.rollout and engine.training write, as real episodes of a world.

    NAME.npz with NAME.jsonl beside it    of python -m agents.rollout: frames, actions and rewards; the log says whether
                                          the episode ended, and its named variables
    train-000.safetensors, ...            shards of python -m engine.training: whole episodes, row by row

Knows the two layouts and a world's spec; plays nothing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from engine import WorldSpec
from inferix_env.evaluation.episodes import Episode, choices_of
from inferix_env.logs import read_log

TERMINATED = 1  # of a shard's `ends`


def recorded(paths: Sequence[Path], spec: WorldSpec, limit: int) -> list[Episode]:
    """The episodes of files, and of all such files in folders, in the order of their names; at most `limit` of them.

    Raises:
        ValueError: a file is none of those, or its episodes are not of this world.
    """
    found: list[Episode] = []
    for path in files_of(paths):
        found += episodes_in(path, spec, len(found))
        if len(found) >= limit:
            break
    return found[:limit]


def files_of(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in (Path(p).expanduser() for p in paths):
        inside = [*path.glob("*.npz"), *path.glob("*.safetensors")] if path.is_dir() else [path]
        if not inside or not all(p.is_file() for p in inside):
            raise ValueError(f"--episodes {path}: expected an npz or safetensors file, or a folder with some")
        files += sorted(inside)
    return files


def episodes_in(path: Path, spec: WorldSpec, first: int) -> list[Episode]:
    """All episodes of a file; they are numbered from `first` on, in place of seeds."""
    try:
        made = [of_rollout(path, spec, first)] if path.suffix == ".npz" else list(of_shard(path, spec, first))
    except (OSError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"{path} holds no recorded episode: {error}") from None
    for episode in made:
        check(path, episode, spec)
    return made


def of_rollout(path: Path, spec: WorldSpec, number: int) -> Episode:
    """An episode of agents.rollout. A world's own reset shows several frames: the last of each step is kept.

    Raises:
        ValueError: its actions are others, or its log is missing or no log.
    """
    with np.load(path, allow_pickle=False) as data:
        frames, steps, taken, rewards = (data[name] for name in ("frames", "frame_steps", "actions", "rewards"))
    log = read_log(path.with_suffix(".jsonl"))
    last = np.append(np.flatnonzero(np.diff(steps)), len(steps) - 1)
    encoded = np.stack([encode(path, spec, action) for action in taken])
    said = [line.get("variables", {}) for line in log.lines]
    names = [v.name for v in spec.variables]
    missing = [name for name in names if not all(name in row for row in said)]
    if missing:
        raise ValueError(f"{path.with_suffix('.jsonl')} does not say the variables {missing}, which {spec.name} has")
    variables = np.array([[row[name] for name in names] for row in [said[0], *said]], np.float64)
    actions = np.concatenate([np.zeros((1, spec.actions.width), np.float32), encoded])
    return Episode(
        number,
        frames[last],
        choices_of(actions, spec),
        actions,
        np.append(0.0, rewards),
        variables.reshape(len(actions), len(names)),
        bool(log.lines[-1]["terminated"]),
    )


def encode(path: Path, spec: WorldSpec, action: np.ndarray) -> np.ndarray:
    try:
        return spec.actions.encode(action)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def of_shard(path: Path, spec: WorldSpec, first: int) -> Iterator[Episode]:
    """The episodes of a shard of engine.training, whose metadata name the variables."""
    with safe_open(path, "numpy") as file:
        rows = {name: file.get_tensor(name) for name in ("actions", "rewards", "ends", "valid", "starts", "variables")}
        whole = file.get_slice("frames")
        names = json.loads((file.metadata() or {}).get("metadata", "{}")).get("variables", [])
        missing = [v.name for v in spec.variables if v.name not in names]
        if missing:
            raise ValueError(f"{path} has the variables {names}: {spec.name} wants {missing} too")
        columns = [names.index(v.name) for v in spec.variables]
        for i, (begin, end) in enumerate(pairwise(rows["starts"].tolist())):
            actions = spec.actions.encode_rows(rows["actions"][begin:end])
            actions[0] = 0
            shown = int(rows["valid"][begin:end].sum())  # an end that shows no picture is the last row
            yield Episode(
                first + i,
                whole[begin : begin + shown],
                choices_of(actions, spec),
                actions,
                rows["rewards"][begin:end].astype(np.float64),
                rows["variables"][begin:end][:, columns].astype(np.float64),
                bool(rows["ends"][end - 1] == TERMINATED),
            )


def check(path: Path, episode: Episode, spec: WorldSpec) -> None:
    """Raise ValueError unless an episode's frames are the world's, and as many as its steps."""
    if episode.frames.dtype != np.uint8 or episode.frames.shape[1:] != (*spec.frame, 3):
        raise ValueError(
            f"{path}: frames are {episode.frames.dtype} {list(episode.frames.shape[1:])}: {spec.name} has uint8 "
            f"{[*spec.frame, 3]}"
        )
    if not len(episode.actions) - 1 <= len(episode.frames) <= len(episode.actions):
        raise ValueError(f"{path}: {len(episode.frames)} frames of {len(episode.actions) - 1} steps: expected one each")
