"""Logs of episodes: enough to play one again, bit for bit, and to see whether it came out the same.

A log is JSONL. Its first line is {"header": {...}}: the env, how it was made, the seed, and a hash of the first
frames. Each further line is one step: action, reward, terminated, truncated, a hash of its frames, and what a world
says of itself. No line holds a clock: same seed, same actions, same bytes. Knows frames and files; steps nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import inferix_env
from inferix_env.record import write_text

HEADER = {"env": str, "make": dict, "seed": int, "sha256": str}
STEP = {"action", "reward", "terminated", "truncated", "sha256"}
# What a world's info says of a step, beside its frames.
SAID = ("end_probability", "variables", "uncertainty", "prompt")
# Of the libraries whose numerics decide a frame's bits.
VERSIONS = {"inferix_env": inferix_env.__version__, **{name: version(name) for name in ("gymnasium", "numpy", "torch")}}
# The id that takes any world.
ANY_WORLD = "inferix_env/World-v0"


@dataclass
class Log:
    """One episode so far: the header, and a line for each step."""

    header: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(cls, seed: int, frames: np.ndarray, about: Mapping[str, Any]) -> Log:
        """A log of an episode of this seed that has shown its first frames, uint8 [T, H, W, 3].

        Args:
            about: `env` and `make` (how to make it again), and what else the header is to say.
        """
        return cls({**about, "seed": seed, "versions": VERSIONS, "frames": len(frames), "sha256": digest(frames)})

    def add(self, action: Any, outcome: tuple, frames: np.ndarray, said: Sequence[str] = SAID) -> None:
        """Add a step.

        Args:
            action: what was done.
            outcome: the five values that `env.step` returned.
            frames: all that the step showed, uint8 [T, H, W, 3].
            said: what else to keep of its info, where it is there; plain values only.
        """
        _, reward, terminated, truncated, info = outcome
        line = {
            "step": len(self.lines) + 1,
            "action": plain(action),
            "reward": float(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            **{name: plain(info[name]) for name in said if name in info},
            "frames": len(frames),
            "sha256": digest(frames),
        }
        self.lines.append(line)

    def write(self, path: Path) -> Path:
        """Write the log.

        Raises:
            OSError: the file cannot be written.
        """
        return write_text(path, "".join(json.dumps(line) + "\n" for line in ({"header": self.header}, *self.lines)))


def read_log(path: str | Path) -> Log:
    """A log from its file.

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
    return Log(header, lines[1:])


def plain(value: Any) -> Any:
    """Numbers, arrays, mappings and sequences as JSON can say them, without loss."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def digest(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()
