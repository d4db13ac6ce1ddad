"""Measures: numbers with intervals over episodes, and the samples behind them, so that two runs can be compared.

Intervals are percentile bootstraps over episodes (Efron, 1979): as many are drawn again, with replacement. Knows
numbers alone: nothing of frames or worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

Better = Literal["higher", "lower", "one", ""]
BETTER: tuple[Better, ...] = get_args(Better)
DRAWS, CONFIDENCE = 2_000, 0.95


def decibels(error: np.ndarray) -> np.ndarray:
    """PSNR, dB, of mean squared errors of 8-bit frames."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


# What a measure's value is of the mean of its samples.
STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda mean: mean,
    "psnr": decibels,
    "explained": lambda mean: 1 - mean,
}


@dataclass(frozen=True)
class Measure:
    """One number of a run.

    Attributes:
        name: what is measured: "PSNR".
        of: of what: "dream", or a baseline such as "repeat last frame".
        value, low, high: the number and the ends of its interval; None where it is not known.
        at: where on the curve of this name it stands (a horizon, an age), None of a single number.
        better: higher, lower or one (the closer to 1); "" for what is no merit of the world: baselines, real numbers.
        statistic: of STATISTICS, what `value` is of the mean of `samples`.
        samples: a number for each episode, by its name; {} where the value is no such thing.
    """

    name: str
    of: str
    value: float | None
    low: float | None = None
    high: float | None = None
    at: float | None = None
    unit: str = ""
    better: Better = ""
    statistic: str = "mean"
    samples: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, float | None]:
        """What makes it the same measure in another run."""
        return self.name, self.of, self.at

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON; what is not finite is None."""
        data = {name: getattr(self, name) for name in ("name", "of", "at", "unit", "better", "statistic")}
        ends = {name: finite(getattr(self, name)) for name in ("value", "low", "high")}
        return {**data, **ends, "samples": {name: float(f"{x:.7g}") for name, x in self.samples.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measure:
        """Raises ValueError for what `to_dict` never wrote."""
        try:
            measure = cls(**data)
        except TypeError as error:
            raise ValueError(f"no measure: {error}") from None
        if measure.better not in BETTER or measure.statistic not in STATISTICS or not isinstance(measure.samples, dict):
            raise ValueError(f"no measure: better {measure.better!r}, statistic {measure.statistic!r}")
        return measure


def finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def resample(count: int, draws: int = DRAWS) -> np.ndarray:
    """How often each of `count` episodes is in each draw, float64 [draws, count]; always the same."""
    rng = np.random.default_rng(count)
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def measure(
    name: str,
    of: str,
    samples: Mapping[str, float],
    at: float | None = None,
    unit: str = "",
    better: Better = "",
    statistic: str = "mean",
) -> Measure:
    """A statistic of the mean of samples, with its interval where there are at least two; NaN samples are left out."""
    kept = {key: float(x) for key, x in samples.items() if np.isfinite(x)}
    values = np.array(list(kept.values()))
    given = {"at": at, "unit": unit, "better": better, "statistic": statistic, "samples": kept}
    if not len(values):
        return Measure(name, of, None, **given)  # type: ignore[arg-type]
    value = float(STATISTICS[statistic](values.mean()))
    if len(values) < 2:
        return Measure(name, of, finite(value), **given)  # type: ignore[arg-type]
    drawn = STATISTICS[statistic](resample(len(values)) @ values / len(values))
    low, high = ends_of(drawn)
    return Measure(name, of, finite(value), low, high, **given)  # type: ignore[arg-type]


def measure_of(
    name: str,
    of: str,
    items: Sequence[Any],
    statistic: Callable[[list[Any]], float],
    at: float | None = None,
    unit: str = "",
    better: Better = "",
    draws: int = 500,
) -> Measure:
    """Any number of a list of episodes, with its interval; it keeps no samples."""
    value = finite(statistic(list(items)))
    if value is None or len(items) < 2:
        return Measure(name, of, value, at=at, unit=unit, better=better)
    rng = np.random.default_rng(len(items))
    picks = rng.integers(len(items), size=(draws, len(items)))
    low, high = ends_of(np.array([statistic([items[i] for i in row]) for row in picks]))
    return Measure(name, of, value, low, high, at, unit, better)


def ends_of(drawn: np.ndarray) -> tuple[float | None, float | None]:
    """The ends of the interval of drawn statistics; None where hardly any is finite."""
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 20:
        return None, None
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
