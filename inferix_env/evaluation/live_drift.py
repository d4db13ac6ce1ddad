"""The drift of a world that runs: frames come as they are made, a value follows every chunk, and nothing is kept.

Knows scorers and drift; knows nothing of worlds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferix_env.evaluation.drift import Mode, RunningDrift
from inferix_env.evaluation.scorers import Scorer
from inferix_env.evaluation.scorers.scorer import BLOCK, check_frames


@dataclass(frozen=True)
class Reading:
    """After a chunk.

    Attributes:
        chunk: how many there were.
        score: of this one.
        latest: how far it is from the first, |m_n - m_1| / m_1.
        drift: of all so far.
    """

    chunk: int
    score: float
    latest: float
    drift: float


class LiveDrift:
    """One scorer's running drift over chunks of `length` frames, at constant memory.

    Args:
        mode: "normalised" stays comparable as chunks are added; see `RunningDrift`.

    Raises:
        ValueError: `length` is below 1, or the mode has no running form.
    """

    def __init__(self, scorer: Scorer, length: int, mode: Mode = "normalised"):
        if length < 1:
            raise ValueError(f"chunks of {length} frames: expected 1 or more")
        self.scorer, self.length = scorer, length
        self.running = RunningDrift(mode)
        self.tally, self.seen = scorer.tally(), 0

    def add(self, frames: np.ndarray) -> list[Reading]:
        """Take the next frames, uint8 [T, H, W, 3], any number; returns a reading for each chunk they complete.

        Raises:
            ValueError: frames of another type, a chunk too short for the scorer, or a first one that scores 0.
        """
        check_frames(frames)
        readings = []
        while len(frames):
            part = frames[: min(BLOCK, self.length - self.seen)]
            self.tally.add(self.scorer.look(part))
            self.seen, frames = self.seen + len(part), frames[len(part) :]
            if self.seen == self.length:
                readings.append(self._end_chunk())
        return readings

    def _end_chunk(self) -> Reading:
        score = self.tally.value()
        self.tally, self.seen = self.scorer.tally(), 0
        value = self.running.add(score)
        return Reading(self.running.count, score, self.running.latest, value)
