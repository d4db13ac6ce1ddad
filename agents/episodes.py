"""Episodes of any Gymnasium env that shows pictures: making the env, seeing its frames, keeping all of it.

Knows no policy; what a log holds, inferix_env/logs.py says.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import inferix_env  # noqa: F401  registers the ids
from inferix_env.env import WorldSimEnv
from inferix_env.logs import SAID, Log
from inferix_env.record import write_npz

OURS = "inferix_env.env:WorldSimEnv"


@dataclass
class Episode:
    """What one episode showed and did: S steps, F frames with the first ones that `reset` showed."""

    log: Log
    frames: list[np.ndarray]
    actions: list[Any] = field(default_factory=list)

    def write(self, stem: Path) -> None:
        """Write STEM.npz and STEM.jsonl.

        The npz holds frames uint8 [F, H, W, 3], frame_steps int64 [F] (the step that showed each, 0 for `reset`),
        actions [S, ...] (one array a part, "actions.NAME", where an action has parts) and rewards float64 [S].

        Raises:
            OSError: a file cannot be written.
        """
        arrays = {
            "frames": np.concatenate(self.frames),
            "frame_steps": np.repeat(np.arange(len(self.frames)), [len(f) for f in self.frames]),
            "rewards": np.array([line["reward"] for line in self.log.lines], np.float64),
            **columns("actions", self.actions),
        }
        write_npz(stem.with_suffix(".npz"), arrays)
        self.log.write(stem.with_suffix(".jsonl"))


def make_env(env_id: str, options: Mapping[str, Any]) -> gym.Env:
    """An env by id ("id" or "module:id"), in a render mode that gives pictures if its observations are none.

    Args:
        options: arguments of `WorldSimEnv`: only worlds of inferix_env take them.

    Raises:
        ValueError: there is no such env, it cannot be made, or it shows no pictures.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        entry_point = gym.spec(name).entry_point
        if options and entry_point != OURS:
            raise ValueError(f"env {env_id!r} takes no {', '.join(sorted(options))}: worlds of inferix_env do")
        env = gym.make(name, **options)
        if entry_point == OURS or is_picture(env.observation_space):
            return env
        modes = env.metadata.get("render_modes", [])
        env.close()
        if "rgb_array" not in modes:
            raise ValueError(f"env {env_id!r} shows no pictures: neither its observations nor a render mode rgb_array")
        return gym.make(name, render_mode="rgb_array")
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"env {env_id!r} cannot be made: {error}") from None


def is_world(env: gym.Env) -> bool:
    """Whether the env is one of inferix_env."""
    return isinstance(env.unwrapped, WorldSimEnv)


def is_picture(space: gym.Space) -> bool:
    """Whether observations of this space are pictures, uint8 [H, W, 3]."""
    return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def pictures(env: gym.Env, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
    """All frames that a reset or a step showed, uint8 [T, H, W, 3]: a world's block, the observation or a render.

    Raises:
        ValueError: the env rendered no picture.
    """
    frames = info.get("frames")
    if isinstance(frames, np.ndarray) and frames.ndim == 4:
        return frames
    picture = observation if is_picture(env.observation_space) else env.render()
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
        raise ValueError(f"{env} rendered {type(picture).__name__}: expected a picture, uint8 [H, W, 3]")
    return picture[None].copy()


def frame_rate(env: gym.Env) -> float:
    """Frames a second of what `pictures` gives."""
    if isinstance(env.unwrapped, WorldSimEnv):
        return env.unwrapped.world_spec.fps
    return float(env.metadata.get("render_fps") or 30)


def begin(env: gym.Env, seed: int, about: Mapping[str, Any]) -> tuple[Any, Episode]:
    """Reset an env; returns its observation and the episode's record, whose header says `about` and the seed."""
    observation, info = env.reset(seed=seed)
    frames = pictures(env, observation, info)
    return observation, Episode(Log.begin(seed, frames, about), [frames])


def advance(env: gym.Env, action: Any, episode: Episode) -> Any:
    """Step an env and add what happened to the episode's record; returns the observation."""
    outcome = env.step(action)
    frames = pictures(env, outcome[0], outcome[4])
    episode.log.add(action, outcome, frames, SAID if is_world(env) else ())
    episode.frames.append(frames)
    episode.actions.append(action)
    return outcome[0]


def action_from(value: Any, space: gym.Space) -> Any:
    """An action of the space from the plain JSON that a log keeps.

    Raises:
        ValueError: it is no action of the space.
    """
    try:
        action = from_plain(value, space)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"action {value!r}: expected one of {space}") from None
    if not space.contains(action):
        raise ValueError(f"action {value!r}: expected one of {space}")
    return action


def from_plain(value: Any, space: gym.Space) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {name: from_plain(value[name], part) for name, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(from_plain(v, part) for v, part in zip(value, space.spaces, strict=True))
    return space.from_jsonable([value])[0]


def columns(name: str, rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """Rows of an action as arrays: one, or one for each of its parts."""
    if rows and isinstance(rows[0], Mapping | tuple):
        keys: Iterable[Any] = rows[0] if isinstance(rows[0], Mapping) else range(len(rows[0]))
        return {n: a for key in keys for n, a in columns(f"{name}.{key}", [row[key] for row in rows]).items()}
    return {name: np.array(rows)}
