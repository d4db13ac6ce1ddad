"""Moments amid real episodes that a world is shipped with: another place to begin a dream than an episode's opening.

midway.npz holds their pictures as JPEG, decoded when one is drawn. Knows files and arrays; knows no envs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from engine import Start

FIELDS = ("jpeg", "offsets", "actions", "variables")


@dataclass(frozen=True)
class Moments:
    """M moments, K frames up to each.

    Attributes:
        jpeg: uint8, all pictures one after another.
        offsets: int64 [M * K + 1] into it.
        actions: encoded, [M, K, A]; row k led to frame k, zeros at the first.
        variables: [M, K, V].
    """

    jpeg: np.ndarray
    offsets: np.ndarray
    actions: np.ndarray
    variables: np.ndarray

    def __len__(self) -> int:
        return len(self.actions)

    def start(self, index: int) -> Start:
        """Moment `index`, from 0 on, as the engine takes it."""
        count = self.actions.shape[1]
        frames = [self._picture(index * count + k) for k in range(count)]
        return Start(np.stack(frames), self.actions[index], self.variables[index])

    def _picture(self, i: int) -> np.ndarray:
        data = self.jpeg[self.offsets[i] : self.offsets[i + 1]].tobytes()
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


@lru_cache(maxsize=4)
def moments(folder: Path) -> Moments:
    """The moments of a world folder.

    Raises:
        ValueError: it has none, or not all of it.
    """
    path = folder / "midway.npz"
    if not path.is_file():
        raise ValueError(f"{folder} has no midway.npz: expected starts 'openings', or a world written with moments")
    with np.load(path) as data:
        missing = sorted(set(FIELDS) - set(data.files))
        if missing:
            raise ValueError(f"{path} lacks {missing}: write the world again with python -m engine.training")
        return Moments(*(data[name] for name in FIELDS))
