"""Changes of measures from one result to another, and how far noise alone could have made them.

Knows results as JSON; judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from inferix_env.evaluation import runs
from inferix_env.evaluation.measures import CONFIDENCE, STATISTICS, Measure, resample

SETTINGS = (
    "world",
    "env",
    "frame_skip",
    "settle",
    "policies",
    "policy",
    "limit",
    "steps",
    "chunks",
    "mode",
    "recorded",
)
"""What has to be the same for numbers to be of the same thing."""


@dataclass(frozen=True)
class Change:
    """A measure in A and in B.

    Attributes:
        part: of the report.
        error: the standard error of the difference; None where it is not known.
        paired: over the same episodes.
        better: how much better B is, in the measure's unit; below zero it is worse.
    """

    part: str
    a: Measure
    b: Measure
    error: float | None
    paired: bool
    better: float

    @property
    def share(self) -> float:
        """How much better, as a share of A's value."""
        size = abs(self.a.value or 0.0)
        return self.better / size if size else math.copysign(math.inf, self.better) if self.better else 0.0

    def beyond(self, z: float) -> bool:
        """Whether the interval of so many standard errors leaves zero out."""
        return self.error is not None and self.better != 0 and abs(self.better) > z * self.error


def parts_of(path: Path) -> dict[str, dict[str, Any]]:
    """The parts of a result, by name.

    Raises:
        ValueError: the file is no result.
    """
    data = runs.read(path)
    parts = data["parts"] if "parts" in data else {data.get("part"): data}
    if not isinstance(parts, Mapping) or not all(isinstance(p, Mapping) and "measures" in p for p in parts.values()):
        raise ValueError(f"{path} has no measures: measure again")
    return {str(name): dict(part) for name, part in parts.items()}


def check_same(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise ValueError where two parts are not of the same thing."""
    ours, theirs = a.get("setting", {}), b.get("setting", {})
    apart = {key: (ours.get(key), theirs.get(key)) for key in SETTINGS if ours.get(key) != theirs.get(key)}
    if apart:
        words = "; ".join(f"{key} {x!r} in A, {y!r} in B" for key, (x, y) in apart.items())
        raise ValueError(f"{name}: A and B measure different things: {words}. Measure both the same way")


def changes_of(a: Path, b: Path, only: Sequence[str]) -> list[Change]:
    """Every measure of merit that both results have.

    Raises:
        ValueError: a file is no result, they are of different things, or have nothing in common.
    """
    ours, theirs = parts_of(a), parts_of(b)
    found: list[Change] = []
    for name in [name for name in ours if name in theirs]:
        check_same(name, ours[name], theirs[name])
        found += changes_between(name, ours[name]["measures"], theirs[name]["measures"])
    found = [c for c in found if not only or any(text in c.a.name for text in only)]
    if not found:
        raise ValueError(f"{a} and {b} have no measure in common" + (f" that is named {list(only)}" if only else ""))
    return found


def changes_between(part: str, a: Sequence[Mapping], b: Sequence[Mapping]) -> Iterator[Change]:
    """The measures of two parts that are a merit of the world, and known in both."""
    theirs = {m.key: m for m in map(Measure.from_dict, b)}
    for measure in map(Measure.from_dict, a):
        other = theirs.get(measure.key)
        if measure.better and other is not None and measure.value is not None and other.value is not None:
            yield change(part, measure, other)


def lost(a: Path, b: Path) -> list[str]:
    """Measures of merit that A knows and B does not."""
    ours, theirs = parts_of(a), parts_of(b)
    known = {name: {m.key for m in known_of(part) if m.value is not None} for name, part in theirs.items()}
    return [
        f"{name}: {m.name}" + ("" if m.at is None else f" at {m.at:g}")
        for name, part in ours.items()
        for m in known_of(part)
        if m.better and m.value is not None and m.key not in known.get(name, set())
    ]


def known_of(part: Mapping[str, Any]) -> list[Measure]:
    return [Measure.from_dict(m) for m in part["measures"]]


def change(part: str, a: Measure, b: Measure) -> Change:
    shared = [name for name in a.samples if name in b.samples]
    paired = len(shared) >= 2
    error = paired_error(a, b, shared) if paired else apart_error(a, b)
    better = goodness(a, np.array(b.value)) - goodness(a, np.array(a.value))
    return Change(part, a, b, error, paired, float(better))


def goodness(measure: Measure, value: np.ndarray) -> np.ndarray:
    """A value turned so that higher is better."""
    return {"higher": value, "lower": -value, "one": -np.abs(value - 1)}[measure.better]


def paired_error(a: Measure, b: Measure, names: Sequence[str]) -> float | None:
    """Standard error of the difference in goodness over episodes that both have, drawn together."""
    ours, theirs = (np.array([m.samples[name] for name in names]) for m in (a, b))
    weights, statistic = resample(len(names)) / len(names), STATISTICS[a.statistic]
    drawn = goodness(a, statistic(weights @ theirs)) - goodness(a, statistic(weights @ ours))
    return spread(drawn, len(names))


def spread(drawn: np.ndarray, count: int) -> float | None:
    """Standard deviation of drawn numbers, made up for how much a draw of few episodes falls short."""
    drawn = drawn[np.isfinite(drawn)]
    return float(drawn.std() * math.sqrt(count / (count - 1))) if len(drawn) else None


def apart_error(a: Measure, b: Measure) -> float | None:
    """The same of two measures that share no episodes, off the widths of their intervals."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    widths = [None if m.low is None or m.high is None else (m.high - m.low) / 2 / z for m in (a, b)]
    return None if None in widths else math.hypot(*widths)  # type: ignore[arg-type]
