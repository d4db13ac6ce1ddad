"""Video Drift Error (VDE): how far a clip moves away from how it began, by the scores of its chunks.

A clip is cut into N equal chunks, each scored m_i by a metric; the drift is sum over i = 2..N of w_i |m_i - m_1| / m_1
(LV-Bench, the paper of BlockVid). 0 is a clip that stays as it began; lower is better, whichever way the metric points.
Knows numbers alone: nothing of frames, metrics or worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Mode = Literal["published-linear", "published-log", "normalised"]
MODES: tuple[Mode, ...] = get_args(Mode)
NUM_CHUNKS = 10


class DriftUndefined(ValueError):
    """Scores that drift does not exist for; the message says why."""


def chunks(num_frames: int, count: int = NUM_CHUNKS) -> list[range]:
    """The frames of `count` equal chunks of a clip; trailing frames that fill none are dropped.

    Raises:
        DriftUndefined: there are fewer frames than chunks.
        ValueError: `count` is below 2.
    """
    if count < 2:
        raise ValueError(f"{count} chunks: drift compares chunks with the first one, so expected 2 or more")
    if num_frames < count:
        raise DriftUndefined(f"{num_frames} frames cannot be cut into {count} chunks: expected a longer clip")
    length = num_frames // count
    return [range(i * length, (i + 1) * length) for i in range(count)]


def weights(count: int, mode: Mode = "published-linear") -> np.ndarray:
    """Weights w_2..w_N of the chunks that follow the first, float64 [N - 1].

    "published-linear" is w_i = N - i + 1 and "published-log" its logarithm, as the published numbers were made: not
    divided by their sum, heaviest for early chunks, and with the logarithm nothing for the last one. "normalised" is
    w_i = (i - 1) / (1 + ... + (N - 1)): they sum to one, and late chunks weigh most.

    Raises:
        ValueError: `count` is below 2, or there is no such mode.
    """
    check_mode(mode)
    if count < 2:
        raise ValueError(f"{count} chunks: drift compares chunks with the first one, so expected 2 or more")
    if mode == "normalised":
        ranks = np.arange(1, count, dtype=np.float64)
        return ranks / ranks.sum()
    falling = np.arange(count - 1, 0, -1, dtype=np.float64)
    return np.log(falling) if mode == "published-log" else falling


def deviations(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """|m_i - m_1| / m_1 of the chunks that follow the first, float64 [N - 1].

    Raises:
        DriftUndefined: a score is not finite, or the first is not positive.
        ValueError: the scores are no row.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"scores {list(values.shape)}: expected one number for each chunk")
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DriftUndefined(f"chunk {first + 1} of {len(values)} scores {values[first]}: expected a finite number")
    if values[0] <= 0:
        raise DriftUndefined(f"the first chunk scores {values[0]:g}: drift is relative to it, so it must be above 0")
    return np.abs(values[1:] - values[0]) / values[0]


def drift(scores: Sequence[float] | np.ndarray, mode: Mode = "published-linear") -> float:
    """The drift of a clip whose N chunks score `scores` [N], from 0 up.

    Raises:
        DriftUndefined: a score is not finite, or the first is not positive.
        ValueError: fewer than two scores, or no such mode.
    """
    apart = deviations(scores)
    return float(weights(len(apart) + 1, mode) @ apart)


class RunningDrift:
    """The drift of a clip that goes on and on: a value after every chunk, from three numbers and never more.

    After n scores `value` is `drift` of those n. With "published-linear" it grows without end, as its weights do.
    "published-log" weighs all past chunks anew with every new one, and so has no such form.

    Attributes:
        count: chunks so far.
        latest: how far the last one is from the first, |m_n - m_1| / m_1.

    Raises:
        ValueError: a mode without a running form.
    """

    def __init__(self, mode: Mode = "normalised"):
        check_mode(mode)
        if mode == "published-log":
            raise ValueError("mode 'published-log' has no running form: use 'normalised' or 'published-linear'")
        self.mode: Mode = mode
        self.count, self.latest = 0, 0.0
        self._first = self._sum = self._weighed = 0.0

    def add(self, score: float) -> float:
        """Take the next chunk's score; returns the drift so far, 0 after the first.

        Raises:
            DriftUndefined: the score is not finite, or, of the first chunk, not positive; it is not taken.
        """
        first = self._first if self.count else score
        apart = float(deviations([first, score])[0])
        self._first, self.count, self.latest = first, self.count + 1, apart
        self._sum += apart
        # Linear: a further chunk raises every weight so far by one. Normalised: chunk i keeps its weight i - 1.
        self._weighed += self._sum if self.mode == "published-linear" else (self.count - 1) * apart
        return self.value

    @property
    def value(self) -> float:
        """The drift of all chunks so far; 0 before the second."""
        if self.count < 2 or self.mode == "published-linear":
            return self._weighed
        return self._weighed / (self.count * (self.count - 1) / 2)


def check_mode(mode: str) -> None:
    """Raise ValueError unless there is such a mode."""
    if mode not in MODES:
        raise ValueError(f"drift mode {mode!r}: expected one of {', '.join(MODES)}")
