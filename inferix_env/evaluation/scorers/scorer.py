"""Scorers: a number for a clip, from how each of its frames looks and how these are summed up.

A scorer is two functions: `look` turns a block of frames into what is kept of them, a tally takes that block by block.
A clip of any length is scored from one block of frames at a time. Knows arrays; knows no model and no video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BLOCK = 32  # frames looked at in one go

Look = Callable[[np.ndarray], Any]


class Tally(Protocol):
    """The sum over a clip that comes in blocks; its memory does not grow with them."""

    def add(self, seen: Any) -> None:
        """Take what a `look` made of the next frames."""
        ...

    def value(self) -> float:
        """The clip's score so far; raises ValueError where it is too short for one."""
        ...


@dataclass(frozen=True)
class Scorer:
    """A metric of clips.

    Attributes:
        name: what it is a metric of, such as "clarity".
        method: how it measures, in words.
        stand_in: whether it stands in, without weights, for the published model; its numbers compare with its own only.
        higher_is_better: which way it points.
        moves: what raises and what lowers it, in words.
        look: frames uint8 [T, H, W, 3] -> what the tally takes of them, frame by frame.
        tally: makes an empty tally.
    """

    name: str
    method: str
    stand_in: bool
    higher_is_better: bool
    moves: str
    look: Look
    tally: Callable[[], Tally]

    @property
    def about(self) -> dict[str, str | bool]:
        """What it is, as plain JSON: all but its functions."""
        names = ("name", "method", "stand_in", "higher_is_better", "moves")
        return {name: getattr(self, name) for name in names}

    def score(self, frames: np.ndarray) -> float:
        """The score of a clip, uint8 [T, H, W, 3].

        Raises:
            ValueError: frames of another shape or type, or fewer than the metric needs.
        """
        check_frames(frames)
        return self.score_blocks(blocks_of(frames))

    def score_blocks(self, blocks: Iterable[np.ndarray]) -> float:
        """The score of a clip that comes in blocks of frames, uint8 [T, H, W, 3]: one is held at a time.

        Raises:
            ValueError: the clip is shorter than the metric needs.
        """
        tally = self.tally()
        for frames in blocks:
            tally.add(self.look(frames))
        return tally.value()


def itself(frames: np.ndarray) -> np.ndarray:
    """The look of scorers whose tally takes the frames themselves."""
    return frames


def blocks_of(frames: np.ndarray, length: int = BLOCK) -> Iterator[np.ndarray]:
    """Frames [T, ...] as views of at most `length`."""
    for i in range(0, len(frames), length):
        yield frames[i : i + length]


def check_frames(frames: np.ndarray) -> None:
    """Raise ValueError unless frames are uint8 [T, H, W, 3] with something to see."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}: expected uint8 [T, H, W, 3], T from 1")


class Mean:
    """The mean of one number a frame."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, seen: np.ndarray) -> None:
        """Take numbers [T]."""
        self.sum += float(np.sum(seen, dtype=np.float64))
        self.count += len(seen)

    def value(self) -> float:
        if not self.count:
            raise ValueError("no frames: expected 1 or more")
        return self.sum / self.count


class Consistency:
    """VBench's consistency of features f_t, from 0 to 1.

    The mean over t = 2..T of (max(0, cos(f_1, f_t)) + max(0, cos(f_{t-1}, f_t))) / 2: features that point the other way
    count as unlike, no less. Higher is better.
    """

    def __init__(self) -> None:
        self.first: np.ndarray | None = None
        self.last: np.ndarray | None = None
        self.mean = Mean()

    def add(self, seen: np.ndarray) -> None:
        """Take features [T, D].

        Raises:
            ValueError: one is not finite.
        """
        if not np.isfinite(seen).all():
            raise ValueError("a frame's features are not finite: the model's weights do not fit it, or its precision")
        if not len(seen):
            return
        unit = normalised(seen)
        if self.first is None or self.last is None:
            self.first, self.last, unit = unit[0], unit[0], unit[1:]
        before = np.concatenate([self.last[None], unit[:-1]]) if len(unit) else unit
        to_first, to_last = unit @ self.first, (unit * before).sum(-1)
        self.mean.add((np.maximum(to_first, 0) + np.maximum(to_last, 0)) / 2)
        self.last = unit[-1] if len(unit) else self.last

    def value(self) -> float:
        if not self.mean.count:
            raise ValueError(
                f"{int(self.first is not None)} frames: consistency compares frames, so expected 2 or more"
            )
        return self.mean.value()


def normalised(features: np.ndarray) -> np.ndarray:
    """Rows [T, D] at unit length, float64; a row of zeros stays one."""
    rows = features.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


class Pairs:
    """The mean, over neighbouring frames, of what `measure` says of each pair.

    Args:
        measure: (frames uint8 [N, H, W, 3], those after them) -> numbers [N].
    """

    def __init__(self, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.measure, self.mean = measure, Mean()
        self.held: np.ndarray | None = None

    def add(self, seen: np.ndarray) -> None:
        """Take frames [T, H, W, 3]."""
        frames = seen if self.held is None else np.concatenate([self.held, seen])
        if len(frames) > 1:
            self.mean.add(self.measure(frames[:-1], frames[1:]))
        self.held = frames[-1:].copy()  # a view would keep the block

    def value(self) -> float:
        if not self.mean.count:
            raise ValueError("fewer than 2 frames: motion needs 2 or more")
        return self.mean.value()


class Interpolated:
    """VBench's motion smoothness, from 0 to 1: how well frames are foretold by their neighbours.

    Every second frame, the first kept, is dropped and made anew from its neighbours; the score is
    (255 - mean absolute difference) / 255. A last frame with no neighbour after it does not count. Higher is smoother,
    and a still is the smoothest of all.

    Args:
        between: (frames uint8 [N, H, W, 3] before, frames after) -> those between, in grey levels [N, H, W, 3].
    """

    def __init__(self, between: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        self.between, self.mean = between, Mean()
        self.held: np.ndarray | None = None

    def add(self, seen: np.ndarray) -> None:
        """Take frames [T, H, W, 3]."""
        frames = seen if self.held is None else np.concatenate([self.held, seen])
        count = max(0, len(frames) - 1) // 2
        if count:
            kept, dropped = frames[: 2 * count + 1 : 2], frames[1 : 2 * count : 2]
            made = self.between(kept[:-1], kept[1:])
            errors = np.abs(np.subtract(made, dropped, dtype=np.float32)).mean((1, 2, 3), dtype=np.float64)
            self.mean.add((255 - errors) / 255)
        self.held = frames[2 * count :].copy()  # one frame, or two

    def value(self) -> float:
        if not self.mean.count:
            raise ValueError("fewer than 3 frames: motion smoothness needs 3 or more")
        return self.mean.value()
