"""python -m inferix_env.evaluation compare A.json B.json: what changed beyond noise from one result to another.

A is what stood, B is what is to be judged; both of fidelity, ranking, drift or report. A measure changed where the
interval of the difference leaves zero out: drawn over the same episodes where both have them (paired), else over
either's own. Intervals are wide enough that all of them together hold with the confidence asked for (Bonferroni). A
measure that got worse so, by more than the threshold, is a regression.

Exit status: 0 without a regression, 1 with one, 2 for input that cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated

import tyro

from inferix_env.evaluation.changes import Change, changes_of, lost, parts_of
from inferix_env.evaluation.written import number


@dataclass(frozen=True)
class Config:
    """Compare two results.

    Attributes:
        a: what stood.
        b: what is to be judged.
        threshold: a regression is worse by more than this share of A's value.
        confidence: of all intervals together.
        only: compare measures whose names contain one of these; by default all.
        verbose: show what did not change too.
    """

    a: Annotated[Path, tyro.conf.Positional]
    b: Annotated[Path, tyro.conf.Positional]
    threshold: float = 0.02
    confidence: float = 0.95
    only: tuple[str, ...] = ()
    verbose: bool = False

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        if not (0 <= self.threshold < math.inf and 0 < self.confidence < 1):
            raise ValueError(
                f"--threshold {self.threshold} --confidence {self.confidence}: expected a share of at least 0, and a "
                "probability between 0 and 1"
            )


def run(config: Config) -> int:
    """The command: print what changed; 1 where something regressed."""
    config.check()
    changes = changes_of(config.a, config.b, config.only)
    introduce("A", config.a)
    introduce("B", config.b)
    z = NormalDist().inv_cdf(1 - (1 - config.confidence) / 2 / len(changes))
    changed = [c for c in changes if c.beyond(z)]
    regressed = [c for c in changed if c.share < -config.threshold]
    shown = changes if config.verbose else changed
    rows = [row_of(c, z, verdict(c, changed, regressed)) for c in shown]
    print_rows([["part", "measure", "at", "A", "B", "better by", "±", "over", ""], *rows] if rows else [])
    missing = lost(config.a, config.b)
    if missing:
        print(f"known in A and not in B: {'; '.join(missing)}")
    pairs = sum(c.paired for c in changes)
    print(
        f"{len(changes)} measures compared, {pairs} over the same episodes: {len(changed)} changed beyond noise, "
        f"{len(regressed)} regressed by more than {config.threshold:.3g} of A's value"
    )
    return 1 if regressed else 0


def introduce(letter: str, path: Path) -> None:
    """Say what a result is of."""
    first = next(iter(parts_of(path).values()))
    setting, about = first.get("setting", {}), first.get("about", {})
    print(f"{letter}: {path}: {setting.get('world')}, weights {str(setting.get('weights'))[:12]}, {about.get('date')}")


def verdict(change: Change, changed: Sequence[Change], regressed: Sequence[Change]) -> str:
    if change in regressed:
        return "REGRESSION"
    if change in changed:
        return "better" if change.better > 0 else "worse, within the threshold"
    return "same" if change.error is not None else "noise not known"


def row_of(change: Change, z: float, words: str) -> list[str]:
    a, b = change.a, change.b
    assert a.value is not None
    assert b.value is not None
    at = "" if a.at is None else f"{a.at:g}"
    error = "?" if change.error is None else number(z * change.error)
    over = f"{len(set(a.samples) & set(b.samples))} pairs" if change.paired else "intervals"
    return [change.part, a.name, at, number(a.value), number(b.value), number(change.better), error, over, words]


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(9)] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
