"""From a clip's frames and its action log to episodes, as shards hold them.

Knows clips, logs and what their columns mean; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from engine.actions import ActionSpec, DiscreteActions
from engine.training.action_log import ActionLog
from engine.training.action_parts import Part
from engine.training.clips import Clip
from engine.training.data import TERMINATED, TRUNCATED, Episode


@dataclass(frozen=True)
class Steps:
    """What was done in a clip: step i leads from kept frame i to the next one; of the last step that may be missing.

    Attributes:
        actions: float64 [S, n], as rows of shards keep them.
        rewards: float64 [S].
        ends: uint8 [S]: 0, TERMINATED or TRUNCATED.
    """

    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray

    def cut_before(self, frame: int) -> Steps:
        """The same, with an episode's end before a kept frame, unless there is one."""
        ends = self.ends.copy()
        ends[frame - 1] = ends[frame - 1] or TRUNCATED
        return replace(self, ends=ends)


def steps_of(clip: Clip, log: ActionLog, parts: Sequence[Part], frame_skip: int) -> Steps:
    """What was done in each step of a clip, by a log with a row for each step, or for each frame.

    Raises:
        ValueError: it has another number of rows, or a value that does not fit.
    """
    kept = -(-clip.num_frames // frame_skip)
    columns = [part.values(log) for part in parts]
    rewards, ends = log.numbers("reward"), log.truths("truncated") * np.uint8(TRUNCATED)
    ends[log.truths("terminated")] = TERMINATED
    if len(log) in (kept, kept - 1):
        return Steps(np.concatenate(columns, axis=1), rewards, ends)
    if len(log) not in (clip.num_frames, clip.num_frames - 1):
        refuse_count(clip, log, frame_skip)
    groups = [slice(first, first + frame_skip) for first in range(0, len(log), frame_skip)]
    together = [np.stack([part.together(c[g]) for g in groups]) for part, c in zip(parts, columns, strict=True)]
    first_ends = [next((end for end in ends[g] if end), 0) for g in groups]
    summed = [rewards[g].sum() for g in groups]
    return Steps(np.concatenate(together, axis=1), np.array(summed), np.array(first_ends, np.uint8))


def refuse_count(clip: Clip, log: ActionLog, frame_skip: int) -> None:
    count, kept = clip.num_frames, -(-clip.num_frames // frame_skip)
    text = f"{count}, one for each frame (or {count - 1}, without the last)"
    if frame_skip > 1:
        text += f", or {kept} (or {kept - 1}), one for each step of {frame_skip} frames"
    raise ValueError(f"clip {clip.path} has {count} frames, {log.path} has {len(log)} rows: expected {text}")


def episodes(
    frames: Iterator[np.ndarray], kept: int, steps: Steps, actions: ActionSpec, limit: int
) -> Iterator[tuple[int, Episode]]:
    """(first kept frame, episode) of a clip, as its frames come; at most one episode is held.

    Args:
        kept: how many frames will come.
        limit: steps of an episode, at most.
    """
    seen: list[np.ndarray] = []
    begin = 0
    for first, last, blank in segments(kept, steps.ends, limit):
        seen, begin = seen[first - begin :], first
        seen += islice(frames, last - first + 1 - len(seen))
        if last > first and len(seen) == last - first + 1:
            yield first, episode(seen, first, steps, actions, blank)
    for _ in frames:  # to its end, where a clip that is shorter or longer than it said is refused
        pass


def segments(kept: int, ends: np.ndarray, limit: int) -> Iterator[tuple[int, int, bool]]:
    """(first frame, last frame, whether it ended after that and no frame shows it) of each episode of a clip.

    An end in the middle of a clip has no picture: the frame after it is another episode's first. At the end of the
    clip it is the last frame, if there is one after the step that ended it.
    """
    first = 0
    for step in range(kept - 2):
        if ends[step]:
            yield first, step, bool(ends[step] == TERMINATED)
            first = step + 1
        elif step + 1 - first == limit:
            yield first, step + 1, False
            first = step + 1
    yield first, kept - 1, len(ends) == kept and bool(ends[-1] == TERMINATED)


def episode(seen: list[np.ndarray], first: int, steps: Steps, actions: ActionSpec, blank: bool) -> Episode:
    """Frames from one on, and what led to each, as rows (see data.py); a blank end is the last one again, not valid."""
    frames = np.stack([*seen, seen[-1]] if blank else seen)
    count = len(frames)
    rows = np.concatenate([np.zeros((1, steps.actions.shape[1])), steps.actions[first : first + count - 1]])
    terminated = steps.ends[first + count - 2] == TERMINATED
    ends, valid = np.zeros(count, np.uint8), np.ones(count, np.uint8)
    ends[-1], valid[-1] = TERMINATED if terminated else TRUNCATED, not blank
    return Episode(
        frames=frames,
        actions=rows[:, 0].astype(np.int64) if isinstance(actions, DiscreteActions) else rows.astype(np.float32),
        rewards=np.concatenate([[0.0], steps.rewards[first : first + count - 1]]).astype(np.float32),
        ends=ends,
        valid=valid,
        variables=np.zeros((count, 0), np.float32),
    )
