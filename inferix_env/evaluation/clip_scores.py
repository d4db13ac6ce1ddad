"""What scorers say of a clip: of each of its chunks, of the whole, and how far the chunks drift. One block at a time.

What goes wrong with one scorer, or with one clip, is a reason beside the other results. Knows scorers and drift;
files only by their frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inferix_env.evaluation.drift import MODES, NUM_CHUNKS, DriftUndefined, chunks, drift
from inferix_env.evaluation.scorers import Scorer
from inferix_env.evaluation.videos import Unreadable, measure_video, read_blocks


@dataclass(frozen=True)
class Scored:
    """One scorer's results.

    Attributes:
        chunks: the score of each chunk.
        whole: of all frames, trailing ones too: where the scorer is VBench's, its dimension.
        drift: by mode; empty where it does not exist.
        reason: why something is missing; None where nothing is.
    """

    chunks: list[float] = field(default_factory=list)
    whole: float | None = None
    drift: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class ClipScores:
    """One clip's results.

    Attributes:
        frames: how many there are; 0 where it cannot be read.
        size: their (H, W).
        scores: by scorer.
        reason: why there are no scores; None where there are.
    """

    frames: int = 0
    size: tuple[int, int] | None = None
    scores: dict[str, Scored] = field(default_factory=dict)
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


class Scoring:
    """One scorer over one clip: a tally of the chunk, a tally of the whole, and what has come of them."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.chunk, self.whole = scorer.tally(), scorer.tally()
        self.values: list[float] = []
        self.reason: str | None = None

    def add(self, frames: np.ndarray, chunked: bool) -> None:
        """Take the next frames, looked at once for both tallies; `chunked` of those that belong to a chunk."""
        if self.reason is None:
            try:
                seen = self.scorer.look(frames)
                self.whole.add(seen)
                if chunked:
                    self.chunk.add(seen)
            except ValueError as error:
                self.reason = str(error)

    def end_chunk(self) -> None:
        if self.reason is None:
            try:
                self.values.append(finite(self.chunk.value()))
            except ValueError as error:
                self.reason = f"chunk {len(self.values) + 1}: {error}"
            self.chunk = self.scorer.tally()

    def result(self) -> Scored:
        if self.reason is not None:
            return Scored(self.values, reason=self.reason)
        try:
            whole = finite(self.whole.value())
        except ValueError as error:
            return Scored(self.values, reason=str(error))
        try:
            apart: dict[str, float] = {mode: drift(self.values, mode) for mode in MODES}
        except DriftUndefined as error:
            return Scored(self.values, whole, reason=str(error))
        return Scored(self.values, whole, apart)


def finite(score: float) -> float:
    """The score; raises ValueError where it is no number that can be compared."""
    if not math.isfinite(score):
        raise ValueError(f"the score is {score}: expected a finite number")
    return score


def score_clip(
    blocks: Iterable[np.ndarray], num_frames: int, scorers: Sequence[Scorer], count: int = NUM_CHUNKS
) -> ClipScores:
    """Score a clip of `num_frames` that comes in blocks uint8 [T, H, W, 3], cut into `count` chunks.

    Raises:
        DriftUndefined: there are fewer frames than chunks.
        ValueError: the blocks hold another number of frames.
    """
    length = len(chunks(num_frames, count)[0])
    scorings = [Scoring(scorer) for scorer in scorers]
    seen, size = 0, (0, 0)
    for frames in cut(blocks, length, count):
        for scoring in scorings:
            scoring.add(frames, seen < length * count)
        seen, size = seen + len(frames), frames.shape[1:3]
        if seen % length == 0 and seen <= length * count:
            for scoring in scorings:
                scoring.end_chunk()
    if seen != num_frames:
        raise ValueError(f"the clip has {seen} frames: expected the {num_frames} that were announced")
    results = {s.scorer.name: s.result() for s in scorings}
    return ClipScores(num_frames, (int(size[0]), int(size[1])), results)


def cut(blocks: Iterable[np.ndarray], length: int, count: int) -> Iterator[np.ndarray]:
    """The same frames, in blocks none of which reaches over the end of a chunk of `length`."""
    seen = 0
    for block in blocks:
        while len(block):
            part = block[: length - seen % length] if seen < length * count else block
            yield part
            seen, block = seen + len(part), block[len(part) :]


def score_video(path: str | Path, scorers: Sequence[Scorer], count: int = NUM_CHUNKS) -> ClipScores:
    """Score a video file, read twice: once to count its frames. What cannot be scored comes back with the reason."""
    try:
        num_frames, size = measure_video(path)
    except Unreadable as error:
        return ClipScores(reason=str(error))
    try:
        return score_clip(read_blocks(path), num_frames, scorers, count)
    except ValueError as error:  # too short, or another file than a moment ago
        return ClipScores(num_frames, size, reason=str(error))
