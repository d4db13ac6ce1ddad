"""Episodes of any Gymnasium env that shows pictures: making the env, seeing its frames, writing and reading logs.

A log is JSONL. Its first line is {"header": {...}}: the env, how it was made, the seed, and a hash of the first
frames. Each further line is one step: action, reward, terminated, truncated, a hash of its frames, and what a world
says of itself. No line holds a clock: same seed, same actions, same bytes. Knows no policy.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import inferix_env
from inferix_env.env import WorldSimEnv
from inferix_env.record import write_npz, write_text

OURS = "inferix_env.env:WorldSimEnv"
HEADER = {"env": str, "make": dict, "seed": int, "sha256": str}
STEP = {"action", "reward", "terminated", "truncated", "sha256"}
# Of the libraries whose numerics decide a frame's bits.
VERSIONS = {"inferix_env": inferix_env.__version__, **{name: version(name) for name in ("gymnasium", "numpy", "torch")}}


@dataclass
class Episode:
    """What one episode showed and did: S steps, F frames with the first ones that `reset` showed."""

    header: dict[str, Any]
    frames: list[np.ndarray]
    actions: list[Any] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)

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
            "rewards": np.array([line["reward"] for line in self.lines], np.float64),
            **columns("actions", self.actions),
        }
        write_npz(stem.with_suffix(".npz"), arrays)
        lines = [{"header": self.header}, *self.lines]
        write_text(stem.with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in lines))


def make_env(env_id: str, options: Mapping[str, Any]) -> gym.Env:
    """An env by id ("id" or "module:id"), in a render mode that gives pictures if its observations are none.

    Args:
        options: `world`, `num_steps`, `device`: only worlds of inferix_env take them.

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
    header = {**about, "seed": seed, "versions": VERSIONS, "frames": len(frames), "sha256": digest(frames)}
    return observation, Episode(header, [frames])


def advance(env: gym.Env, action: Any, episode: Episode) -> Any:
    """Step an env and add what happened to the episode's record; returns the observation."""
    observation, reward, terminated, truncated, info = env.step(action)
    frames = pictures(env, observation, info)
    said = {name: plain(info[name]) for name in ("end_probability", "variables")} if is_world(env) else {}
    line = {
        "step": len(episode.lines) + 1,
        "action": plain(action),
        "reward": float(reward),
        "terminated": bool(terminated),
        "truncated": bool(truncated),
        **said,
        "frames": len(frames),
        "sha256": digest(frames),
    }
    episode.frames.append(frames)
    episode.actions.append(action)
    episode.lines.append(line)
    return observation


def read_log(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and steps of a log.

    Raises:
        ValueError: the file cannot be read, or a line is none of a log; names the line.
    """
    try:
        texts = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"log {str(path)!r} cannot be read: {error}") from None
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, column {error.colno}: no JSON: {error.msg}") from None
    header = lines[0].get("header") if lines and isinstance(lines[0], dict) else None
    if not isinstance(header, dict) or any(not isinstance(header.get(key), kind) for key, kind in HEADER.items()):
        raise ValueError(f'{path}, line 1: expected {{"header": ...}} with {list(HEADER)}, as rollouts write it')
    for number, line in enumerate(lines[1:], start=2):
        if not isinstance(line, dict) or not set(line) >= STEP:
            raise ValueError(f"{path}, line {number}: expected a step with {sorted(STEP)}")
    return header, lines[1:]


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


def plain(value: Any) -> Any:
    """Numbers, arrays, mappings and sequences as JSON can say them, without loss."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def columns(name: str, rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """Rows of an action as arrays: one, or one for each of its parts."""
    if rows and isinstance(rows[0], Mapping | tuple):
        keys: Iterable[Any] = rows[0] if isinstance(rows[0], Mapping) else range(len(rows[0]))
        return {n: a for key in keys for n, a in columns(f"{name}.{key}", [row[key] for row in rows]).items()}
    return {name: np.array(rows)}


def digest(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()
