"""Episodes on disk: shards of safetensors, written by `collect`, read by every training stage.

A shard holds whole episodes, row by row. Row t is one frame and what led to it:

    frames    uint8   [T, H, W, 3]
    actions   float32 [T, A] or int64 [T]   the action that led to this frame (zeros at a start)
    rewards   float32 [T]                   the reward of that step (0 at a start)
    ends      uint8   [T]                   0 none, 1 terminated, 2 truncated: the episode ends with this step
    valid     uint8   [T]                   0 where the env showed no picture (some games blank the last one)
    starts    int64   [E + 1]               row offsets of the episodes, closed by T
    variables float32 [T, V]                named extra variables, as they stood at this frame

Knows files and arrays; does not know Gymnasium, torch modules or how a world is trained.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

START, TERMINATED, TRUNCATED = 0, 1, 2


@dataclass(frozen=True)
class Episode:
    """One episode as rows (see the module's legend), T >= 1."""

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    valid: np.ndarray
    variables: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


FIELDS = ("frames", "actions", "rewards", "ends", "valid", "variables")


def write_shard(path: Path, episodes: list[Episode], metadata: dict) -> None:
    """Write whole episodes as one shard; the file appears under its name only when it is complete."""
    rows = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in FIELDS}
    lengths = [len(e) for e in episodes]
    rows["starts"] = np.cumsum([0, *lengths]).astype(np.int64)
    temporary = path.with_suffix(".tmp")
    save_file(rows, temporary, metadata={"metadata": json.dumps(metadata)})
    os.replace(temporary, path)


class Shards:
    """All shards of a folder as one array of rows, read on demand.

    Args:
        folder: where `collect` wrote.
        split: "train" or "validation": shards carry it in their names.

    Raises:
        ValueError: the folder holds no shard of that split.
    """

    def __init__(self, folder: Path, split: str = "train"):
        self.paths = sorted(Path(folder).glob(f"{split}-*.safetensors"))
        if not self.paths:
            raise ValueError(f"no {split} shards in {folder}: collect data first (python -m engine.training --env ...)")
        self._files = [safe_open(p, "numpy") for p in self.paths]
        self.metadata = json.loads(self._files[0].metadata()["metadata"])
        offsets, starts = [0], []
        for file in self._files:
            shard_starts = file.get_tensor("starts") + offsets[-1]
            starts.append(shard_starts[:-1])
            offsets.append(int(shard_starts[-1]))
        self.offsets = np.array(offsets)
        self.starts = np.concatenate([*starts, [offsets[-1]]])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def column(self, name: str) -> np.ndarray:
        """A whole column other than `frames`, in memory."""
        return np.concatenate([file.get_tensor(name) for file in self._files])

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of `frames`; they may cross shards."""
        parts = []
        for i in range(int(np.searchsorted(self.offsets, start, "right")) - 1, len(self._files)):
            low, high = self.offsets[i], self.offsets[i + 1]
            if stop <= low:
                break
            window = self._files[i].get_slice("frames")
            parts.append(window[max(start, low) - low : min(stop, high) - low])
        return np.concatenate(parts)
