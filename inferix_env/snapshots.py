"""Snapshots of an episode as bytes: the world's blob, what the env knows of the episode, its random state.

A safetensors file (tensors `world` uint8 [bytes] and `frames` uint8 [T, H, W, 3]) whose metadata holds the rest as
JSON: no pickle, nothing that runs when it is read. What the world's blob holds, and whether this engine can take it,
is the engine's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from inferix_env.state import EpisodeState

FORMAT, VERSION = "inferix_env episode", 1


@dataclass(frozen=True)
class Snapshot:
    """An episode at rest.

    Attributes:
        world: what `Engine.snapshot` returned.
        frames: of the last step, uint8 [T, H, W, 3].
        rng: what the env draws starts and world seeds with.
        episode: the other fields of an `EpisodeState`, by name.
    """

    world: bytes
    frames: np.ndarray
    rng: np.random.Generator
    episode: dict[str, Any]

    @classmethod
    def of(cls, state: EpisodeState, world: bytes, rng: np.random.Generator) -> Snapshot:
        """The snapshot of an episode whose world the engine has turned into bytes."""
        frames = state.frames if isinstance(state.frames, np.ndarray) else state.frames.cpu().numpy()
        given = [name for name in ("prompt", "uncertainty") if getattr(state, name) is not None]
        names = ("horizon", "steps", "end_probability", "over", "expected", *given)
        return cls(world, frames, rng, {name: getattr(state, name) for name in names})

    def encode(self) -> bytes:
        tensors = {"world": np.frombuffer(self.world, np.uint8), "frames": np.ascontiguousarray(self.frames)}
        text = json.dumps({"episode": self.episode, "rng": self.rng.bit_generator.state}, sort_keys=True)
        marks = {"format": FORMAT, "version": str(VERSION), "text": text, "checksum": checksum(tensors, text)}
        return save(tensors, marks)

    @classmethod
    def decode(cls, value: Any, shape: tuple[int, ...], fewest: int | None = None) -> Snapshot:
        """The snapshot of what `encode` returned.

        Args:
            shape: [T, H, W, 3] of the frames that this env's steps have.
            fewest: how many of T there may be, where not all steps have as many; T by default.

        Raises:
            ValueError: it is something else, or damaged, or of a newer version, or of another world.
        """
        metadata, tensors = read(value)
        version, text = int(metadata.get("version", 0)), metadata.get("text", "")
        if version > VERSION:
            raise ValueError(f"the snapshot has version {version}, this package reads up to {VERSION}: update it")
        if checksum(tensors, text) != metadata.get("checksum"):
            raise ValueError("the snapshot is damaged: its checksum does not fit its contents")
        given = tensors["frames"].shape
        if given[1:] != shape[1:] or not (fewest or shape[0]) <= given[0] <= shape[0]:
            raise ValueError(f"the snapshot's frames are {list(given)}: expected {list(shape)}, of this env's world")
        told = json.loads(text)
        return cls(tensors["world"].tobytes(), tensors["frames"].copy(), generator(told["rng"]), told["episode"])


def read(value: Any) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays of a safetensors blob of this format."""
    if not isinstance(value, bytes):
        raise ValueError(f"snapshot is a {type(value).__name__}: expected the bytes that snapshot() of an env returned")
    try:
        size = int.from_bytes(value[:8], "little")
        metadata = json.loads(value[8 : 8 + size]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ValueError("its format is another: expected what snapshot() of an env returned")
        return metadata, load(value)
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the snapshot is truncated or no snapshot at all ({len(value):,} bytes): {error}") from None


def generator(state: dict[str, Any]) -> np.random.Generator:
    """A random generator of Gymnasium's kind, as it stood."""
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = state
    return rng


def checksum(tensors: dict[str, np.ndarray], text: str) -> str:
    """sha256 over names, shapes, bytes and the text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
