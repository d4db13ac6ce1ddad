"""What the actions of a world are, and how each is encoded: float32 rows that a denoiser reads. Values only.

A spec of actions is frozen, compares by value and round-trips through JSON (`action_spec`). Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TextActions:
    """A prompt, up to `longest` characters; an empty one keeps the prompt that holds. Nothing is encoded here."""

    longest: int = 2048
    kind: str = "text"

    @property
    def width(self) -> int:
        return 0

    @property
    def row_width(self) -> int:
        return 0

    def encode(self, action: object) -> np.ndarray:
        """Raises ValueError unless `action` is a string that is not too long."""
        if not isinstance(action, str):
            raise ValueError(f"action {action!r}: expected a prompt, or '' to keep the one that holds")
        if len(action) > self.longest:
            raise ValueError(f"a prompt of {len(action)} characters: expected at most {self.longest}")
        return np.zeros(0, np.float32)

    def encode_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), 0), np.float32)


@dataclass(frozen=True)
class BinaryActions:
    """Keys, each down or up, encoded multi-hot: float32 [n]."""

    n: int
    names: tuple[str, ...] = ()
    kind: str = "binary"

    @property
    def width(self) -> int:
        return self.n

    @property
    def row_width(self) -> int:
        return self.n

    def encode(self, action: object) -> np.ndarray:
        """Raises ValueError unless `action` is `n` zeros and ones."""
        value = np.asarray(action)
        if value.shape != (self.n,) or not np.isin(value, (0, 1)).all():
            names = f" ({', '.join(self.names)})" if self.names else ""
            raise ValueError(f"action {action!r}: expected {self.n} zeros and ones{names}")
        return value.astype(np.float32)

    def encode_rows(self, rows: np.ndarray) -> np.ndarray:
        """[T, n] -> float32 [T, n]."""
        return rows.reshape(len(rows), self.n).astype(np.float32)


@dataclass(frozen=True)
class DiscreteActions:
    """One of `n` actions, encoded one-hot: float32 [n]."""

    n: int
    names: tuple[str, ...] = ()
    kind: str = "discrete"

    @property
    def width(self) -> int:
        return self.n

    @property
    def row_width(self) -> int:
        return 1

    def encode(self, action: object) -> np.ndarray:
        """Raises ValueError unless `action` is an integer in [0, n)."""
        value = np.asarray(action)
        if value.ndim or not np.issubdtype(value.dtype, np.integer) or not 0 <= int(value) < self.n:
            raise ValueError(f"action {action!r}: expected an integer from 0 to {self.n - 1}{self._listed()}")
        return np.eye(self.n, dtype=np.float32)[int(value)]

    def encode_rows(self, rows: np.ndarray) -> np.ndarray:
        """Integer rows [T] or [T, 1] as shards keep them -> float32 [T, n]."""
        return np.eye(self.n, dtype=np.float32)[rows.reshape(len(rows)).astype(np.int64)]

    def _listed(self) -> str:
        return " (" + ", ".join(f"{i} {name}" for i, name in enumerate(self.names)) + ")" if self.names else ""


@dataclass(frozen=True)
class ContinuousActions:
    """A vector between bounds, encoded to [-1, 1]: float32 [len(low)]. `names` are of its numbers: steer, gas."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    names: tuple[str, ...] = ()
    kind: str = "continuous"

    @property
    def width(self) -> int:
        return len(self.low)

    @property
    def row_width(self) -> int:
        return len(self.low)

    def encode(self, action: object) -> np.ndarray:
        """Raises ValueError unless `action` is a finite vector inside the bounds."""
        value = np.asarray(action, dtype=np.float32).ravel()
        if value.shape != (self.width,) or not np.isfinite(value).all():
            names = f" ({', '.join(self.names)})" if self.names else ""
            raise ValueError(f"action {action!r}: expected {self.width} finite numbers{names}")
        if (value < np.asarray(self.low, np.float32)).any() or (value > np.asarray(self.high, np.float32)).any():
            raise ValueError(f"action {action!r}: expected values from {self.low} to {self.high}")
        return self.encode_rows(value[None])[0]

    def encode_rows(self, rows: np.ndarray) -> np.ndarray:
        """float32 [T, A] -> float32 [T, A] in [-1, 1]."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return ((rows.reshape(len(rows), -1) - low) / (high - low) * 2 - 1).astype(np.float32)


@dataclass(frozen=True)
class DictActions:
    """Several named actions at once, encodings joined in order."""

    parts: tuple[tuple[str, ActionSpec], ...]
    kind: str = "dict"

    @property
    def width(self) -> int:
        return sum(part.width for _, part in self.parts)

    @property
    def row_width(self) -> int:
        return sum(part.row_width for _, part in self.parts)

    def encode(self, action: object) -> np.ndarray:
        """Raises ValueError unless `action` is a mapping with just these names, each part valid."""
        names = [name for name, _ in self.parts]
        if not isinstance(action, Mapping) or set(action) != set(names):
            given = sorted(action) if isinstance(action, Mapping) else repr(action)
            raise ValueError(f"action {given}: expected a mapping with the keys {names}")
        return np.concatenate([part.encode(action[name]) for name, part in self.parts])

    def encode_rows(self, rows: np.ndarray) -> np.ndarray:
        """Joined rows [T, sum of parts] as shards keep them -> float32 [T, width]."""
        rows, encoded, at = rows.reshape(len(rows), -1), [], 0
        for _, part in self.parts:
            encoded.append(part.encode_rows(rows[:, at : at + part.row_width]))
            at += part.row_width
        return np.concatenate(encoded, axis=1)


ActionSpec = DiscreteActions | ContinuousActions | BinaryActions | TextActions | DictActions


def action_spec(data: Mapping[str, Any]) -> ActionSpec:
    """An action spec from plain JSON: {"kind": "discrete", "n": 3}, and so on."""
    if data["kind"] == "discrete":
        return DiscreteActions(int(data["n"]), tuple(data.get("names", ())))
    if data["kind"] == "binary":
        return BinaryActions(int(data["n"]), tuple(data.get("names", ())))
    if data["kind"] == "text":
        return TextActions(int(data.get("longest", 2048)))
    if data["kind"] == "continuous":
        return ContinuousActions(tuple(data["low"]), tuple(data["high"]), tuple(data.get("names") or ()))
    if data["kind"] == "dict":
        parts = data["parts"].items() if isinstance(data["parts"], Mapping) else data["parts"]
        return DictActions(tuple((name, action_spec(part)) for name, part in parts))
    raise ValueError(f"action kind {data['kind']!r}: expected discrete, continuous, binary, text or dict")
