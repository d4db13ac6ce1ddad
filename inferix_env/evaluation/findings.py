"""What a section found: numbers against targets, tables, pictures. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferix_env.evaluation.measures import Measure


@dataclass(frozen=True)
class Check:
    """A number and its target: met where low <= value <= high. NaN meets nothing."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def passed(self) -> bool:
        above = self.low is None or self.value >= self.low
        below = self.high is None or self.value <= self.high
        return above and below and not math.isnan(self.value)

    @property
    def target(self) -> str:
        """The target in words, with its unit."""
        unit = f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None:
            return f"{self.high:g}{unit}" if self.low == self.high else f"{self.low:g} to {self.high:g}{unit}"
        return f"at least {self.low:g}{unit}" if self.high is None else f"at most {self.high:g}{unit}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Table:
    """Rows of numbers or words under a header."""

    title: str
    header: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Picture:
    """uint8 [h, w, 3], and what it shows."""

    pixels: np.ndarray
    caption: str


@dataclass(frozen=True)
class Clip:
    """Moving frames uint8 [T, h, w, 3], so many a second, and what they show."""

    frames: np.ndarray
    fps: float
    caption: str


@dataclass
class Findings:
    """One section of the report.

    Attributes:
        method: how the numbers came about, with their definitions; Markdown.
        checks: numbers that have a target.
        numbers: all numbers, as plain JSON.
        pictures, clips: by file name without ending.
        measures: numbers with intervals, which `compare` compares.
    """

    title: str
    method: str
    checks: list[Check] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    clips: dict[str, Clip] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)


def plain(value: Any) -> Any:
    """The value as strict JSON: arrays as lists, numpy numbers as Python's, what is not finite as words."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
