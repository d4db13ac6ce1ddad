"""What actions the columns of footage's logs are.

One column `action` of words or whole numbers is a discrete action. Else each column is a part: keys where it holds
only 0 and 1, words of its own, or an axis, a number. Knows logs and action specs; knows no video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.actions import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions
from engine.training.action_log import ActionLog

OUTCOMES = ("reward", "terminated", "truncated")
# What logs say beside actions and outcomes, those of agents.rollout among them.
PASSED_OVER = (
    *("clip", "frame", "frames", "step", "time", "timestamp", "sha256"),
    *("end_probability", "variables", "uncertainty", "prompt"),
)
NEUTRAL = ("none", "noop", "still", "stay", "nothing")


def action_columns(log: ActionLog, chosen: Sequence[str] = ()) -> list[str]:
    """Which columns are actions: the chosen ones; else `action`, or all `action.NAME`; else all that are left.

    Raises:
        ValueError: there is none, or a chosen one is missing.
    """
    names = list(log.columns)
    missing = [name for name in chosen if name not in names]
    if missing:
        raise ValueError(f"{log.path} has no columns {missing}: it has {names}")
    said = [name for name in names if name == "action" or name.startswith("action.")]
    left = [name for name in names if name not in OUTCOMES + PASSED_OVER]
    found = list(chosen) or said or left
    if not found:
        raise ValueError(f"{log.path} has the columns {names}: expected `action`, or one for each key or axis")
    return found


@dataclass(frozen=True)
class Part:
    """One part of an action, from one column or, of keys and axes, from several.

    Attributes:
        columns: what it is read from.
        spec: what it is.
        values: float64 [T, n] of a log, as rows of shards keep them.
        together: of the rows of one step, float64 [k, n], to the step's own.
    """

    name: str
    columns: tuple[str, ...]
    spec: ActionSpec
    values: Callable[[ActionLog], np.ndarray]
    together: Callable[[np.ndarray], np.ndarray]


def infer_parts(logs: Sequence[ActionLog], columns: Sequence[str], names: Sequence[str] = ()) -> list[Part]:
    """What actions the columns of all logs are.

    Args:
        names: of a discrete action's values, in order, the neutral one first; by default as the logs have them.

    Raises:
        ValueError: the columns are no actions, or `names` do not fit them.
    """
    if list(columns) == ["action"] and not is_numeric(logs, "action"):
        return [words_part(logs, "action", names)]
    if list(columns) == ["action"] and all(is_index(log.numbers("action")) for log in logs):
        return [indices_part(logs, names)]
    if names:
        raise ValueError(f"action names {list(names)}: for a single column `action` of words or whole numbers")
    wordy = [name for name in columns if not is_numeric(logs, name)]
    keys = [name for name in columns if name not in wordy and all(is_key(log.numbers(name)) for log in logs)]
    axes = [name for name in columns if name not in wordy and name not in keys]
    made = [words_part(logs, name, ()) for name in wordy]
    return [*([keys_part(keys)] if keys else []), *([axes_part(logs, axes)] if axes else []), *made]


def is_numeric(logs: Sequence[ActionLog], name: str) -> bool:
    """Whether a column holds numbers, as its first value says; `number` refuses what does not fit then."""
    value = logs[0].columns[name][0]
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
    return isinstance(value, str | int | float)


def is_index(values: np.ndarray) -> bool:
    return bool((values >= 0).all() and (values == values.round()).all())


def is_key(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def short(columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.removeprefix("action.") for name in columns)


def keys_part(columns: Sequence[str]) -> Part:
    """Keys; one that is down in half of a step's rows or more is down."""

    def values(log: ActionLog) -> np.ndarray:
        rows = np.stack([log.numbers(name) for name in columns], axis=1)
        for row, column in np.argwhere(~np.isin(rows, (0, 1))):
            log.refuse(columns[column], row, "0 or 1, as in the other clips")
        return rows

    spec = BinaryActions(len(columns), short(columns))
    return Part("keys", tuple(columns), spec, values, lambda rows: (rows.mean(axis=0) >= 0.5).astype(np.float64))


def axes_part(logs: Sequence[ActionLog], columns: Sequence[str]) -> Part:
    """Numbers from the least to the most of all logs, zero among them; a step's own is its rows' mean."""

    def values(log: ActionLog) -> np.ndarray:
        return np.stack([log.numbers(name) for name in columns], axis=1)

    seen = np.concatenate([values(log) for log in logs])
    reach = np.maximum(np.abs(seen).max(axis=0), 1e-6)
    low = np.where(seen.min(axis=0) < 0, -reach, 0.0)
    high = np.where(seen.max(axis=0) > 0, reach, 0.0)
    spec = ContinuousActions(tuple(low.tolist()), tuple(high.tolist()), short(columns))
    return Part("axes", tuple(columns), spec, values, lambda rows: rows.mean(axis=0))


def indices_part(logs: Sequence[ActionLog], names: Sequence[str]) -> Part:
    """Whole numbers from 0; a step's own is the one that most of its rows have."""
    count = 1 + int(max(log.numbers("action").max() for log in logs))
    if names and len(names) < count:
        raise ValueError(f"action names {list(names)}: the logs have actions from 0 to {count - 1}")
    spec = DiscreteActions(max(count, len(names)), tuple(names))
    return Part("action", ("action",), spec, lambda log: log.numbers("action")[:, None], most_frequent)


def words_part(logs: Sequence[ActionLog], column: str, names: Sequence[str]) -> Part:
    """Words; a step's own is the one that most of its rows have."""
    for log in logs:
        for row, word in enumerate(log.columns[column]):
            if not isinstance(word, str):
                log.refuse(column, row, "a word, as in the first row")
    found = {word for log in logs for word in log.columns[column]}
    known = list(names) or sorted(found, key=lambda word: (word.casefold() not in NEUTRAL, word))
    index = {word: i for i, word in enumerate(known)}

    def values(log: ActionLog) -> np.ndarray:
        words = log.columns[column]
        for row in (row for row, word in enumerate(words) if word not in index):
            log.refuse(column, row, f"one of {known}")
        return np.array([[index[word]] for word in words], np.float64)

    for log in logs:
        values(log)
    [name] = short([column])
    return Part(name, (column,), DiscreteActions(len(known), tuple(known)), values, most_frequent)


def most_frequent(rows: np.ndarray) -> np.ndarray:
    """The commonest row, the first of several, of float64 [k, 1]."""
    values = rows[:, 0].tolist()
    return np.array([max(values, key=lambda value: (values.count(value), -values.index(value)))])


def spec_of(parts: Sequence[Part]) -> ActionSpec:
    """The action of all parts: itself where there is one, else a mapping."""
    return parts[0].spec if len(parts) == 1 else DictActions(tuple((part.name, part.spec) for part in parts))
