"""What is kept of a long dream between two chunks: scores, a few frames to show, and the world put down beside them.

state.json, frames.npz and step-N.world stand in one folder. state.json is written last and names the others, so that a
kill at any moment leaves the chunk before whole. Knows files and numbers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inferix_env.evaluation.written import write_json
from inferix_env.record import write_npz


@dataclass
class State:
    """A run so far.

    Attributes:
        folder: where it is kept.
        setting: what it is measured with; a run of another setting begins anew.
        chunks, real: scores [chunks, windows, scorers], of the dream and of reality.
        steps: dreamed, at the last chunk's end.
        frame: the last one [H, W, 3].
        first, last: the first window's frames, and the last one's [T, H, W, 3].
        shown: the frame at each chunk's end.
        seconds: that it took.
    """

    folder: Path
    setting: dict[str, Any]
    chunks: list[list[list[float]]] = field(default_factory=list)
    real: list[list[list[float]]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    frame: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    first: np.ndarray | None = None
    last: np.ndarray | None = None
    shown: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, setting: dict[str, Any], again: bool) -> State:
        """The run that was kept in a folder, or a fresh one.

        Raises:
            ValueError: what was kept is damaged, or of another setting.
        """
        path = folder / "state.json"
        if again:
            shutil.rmtree(folder, ignore_errors=True)
        if not path.is_file():
            return cls(folder, setting)
        way = "give --again to begin anew, or another --out"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["setting"] != json.loads(json.dumps(setting)):
                raise ValueError(f"{folder} holds a stopped run of another setting: {way}")
            with np.load(folder / f"frames-{data['steps']}.npz") as arrays:
                first, last, shown = arrays["first"], arrays["last"], list(arrays["shown"])
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} holds a stopped run that is damaged ({error}): {way}") from None
        return cls(
            folder, setting, data["chunks"], data["real"], data["steps"], data["seconds"], shown[-1], first, last, shown
        )

    def see(self, frames: np.ndarray) -> None:
        """Keep a window's frames, uint8 [T, H, W, 3], if they are the first, and until others come."""
        self.first = frames if self.first is None else self.first
        self.last = frames

    def add(self, rows: list[list[float]], frame: np.ndarray) -> None:
        """A chunk's scores, and the frame that it ended with."""
        self.chunks.append(rows)
        self.shown.append(frame)
        self.frame = frame

    def write(self, steps: int) -> None:
        """Keep the run; the world has been put down."""
        assert self.first is not None
        assert self.last is not None
        arrays = {"first": self.first, "last": self.last, "shown": np.stack(self.shown)}
        write_npz(self.folder / f"frames-{steps}.npz", arrays)
        self.steps = steps
        names = ("setting", "chunks", "real", "steps", "seconds")
        write_json(self.folder / "state.json", {name: getattr(self, name) for name in names})
        for path in (*self.folder.glob("frames-*.npz"), *self.folder.glob("step-*.world")):
            if path.stem.split("-")[1] != str(steps):
                path.unlink()

    def forget(self) -> None:
        """Remove what only a stopped run needs."""
        shutil.rmtree(self.folder, ignore_errors=True)
