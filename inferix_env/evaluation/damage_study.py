"""What known damage does to the scores and the drift of clips. Knows clips, damages and scorers; draws nothing.

The damage sets in after the first chunk and grows, frame by frame, to its strength at the clip's end, as drift does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from inferix_env.evaluation.clip_scores import Scored, score_clip
from inferix_env.evaluation.damages import DAMAGES, Scene, fitted
from inferix_env.evaluation.drift import MODES, chunks
from inferix_env.evaluation.scorers import Scorer
from inferix_env.evaluation.scorers.scorer import blocks_of


@dataclass(frozen=True)
class Case:
    """A damage at a strength."""

    damage: str
    strength: float


CLEAN = Case("none", 0.0)
EARLY, LATE, CUT = Case("blur, early", 1.0), Case("blur, late", 1.0), Case("swap, sudden", 1.0)


@dataclass(frozen=True)
class Expectation:
    """What a damage has to do to a scorer; of pairs that are not named anything may come.

    Attributes:
        sign: which way the clip's score has to go.
        steady: further with every strength; else the greatest alone counts.
        drifts: its drift, in every mode, has to rise likewise.
    """

    damage: str
    scorer: str
    sign: int
    steady: bool = True
    drifts: bool = True


EXPECTED = (
    Expectation("blur", "clarity", -1),
    Expectation("noise", "clarity", +1),
    Expectation("noise", "motion", -1),
    Expectation("flicker", "motion", -1),
    Expectation("fading", "aesthetic", -1),
    Expectation("cast", "aesthetic", +1),
    Expectation("cast", "background", -1, drifts=False),
    Expectation("flicker", "background", -1),
    Expectation("flicker", "subject", -1),
    Expectation("swap", "subject", -1, steady=False, drifts=False),
    Expectation("swap, sudden", "subject", -1),
    Expectation("swap, sudden", "background", -1),
    Expectation("frozen", "dynamic", -1, drifts=False),
)

Results = Mapping[str, Mapping[Case, Mapping[str, Scored]]]  # by clip, case and scorer


def growing(count: int, num_chunks: int) -> np.ndarray:
    """Amounts [count] from 0 all through the first chunk to 1 at the last frame."""
    first = len(chunks(count, num_chunks)[0])
    return np.concatenate([np.zeros(first), np.linspace(0, 1, count - first + 1)[1:]])


def during(count: int, spans: Sequence[range]) -> np.ndarray:
    """Amounts [count] of 1 in some spans of frames, and else 0."""
    amounts = np.zeros(count)
    for span in spans:
        amounts[span.start : span.stop] = 1
    return amounts


def cases_of(count: int, num_chunks: int, strengths: Sequence[float]) -> dict[Case, tuple[str, np.ndarray]]:
    """Each case's damage and amounts [count]: all damages growing to all strengths; a blur that comes and goes, early
    or late; and another clip from the middle of a middle chunk on."""
    ramp, cut = growing(count, num_chunks), chunks(count, num_chunks)
    middle = cut[num_chunks // 2]
    cases = {Case(name, s): (name, s * ramp) for name in DAMAGES for s in strengths}
    cases[EARLY] = "blur", during(count, cut[1:3])
    cases[LATE] = "blur", during(count, cut[-2:])
    cases[CUT] = "swap", during(count, [range((middle.start + middle.stop) // 2, count)])
    return cases


def study(
    clips: Mapping[str, np.ndarray],
    others: Mapping[str, np.ndarray],
    scorers: Sequence[Scorer],
    strengths: Sequence[float],
    num_chunks: int,
    seed: int,
) -> Results:
    """What every scorer says of every clip in every case.

    Args:
        clips: uint8 [T, H, W, 3] by name.
        others: what is swapped in, for each clip.

    Raises:
        ValueError: a scorer has no result for a clip.
    """
    out: dict[str, dict[Case, dict[str, Scored]]] = {}
    total = len(clips) * (4 + len(DAMAGES) * len(strengths))
    with tqdm(total=total, desc="damage", unit="clip", disable=None) as bar:
        for name, frames in clips.items():
            cases = {CLEAN: ("blur", np.zeros(len(frames))), **cases_of(len(frames), num_chunks, strengths)}
            other, out[name] = fitted(others[name], *frames.shape[:3]), {}
            for case, (damage, amounts) in cases.items():
                scene = Scene(np.random.default_rng(seed), other)  # a stronger case has the same noise
                out[name][case] = scored(name, DAMAGES[damage](frames, amounts, scene), scorers, num_chunks)
                bar.update()
    return out


def scored(name: str, frames: np.ndarray, scorers: Sequence[Scorer], num_chunks: int) -> dict[str, Scored]:
    found = score_clip(blocks_of(frames), len(frames), scorers, num_chunks).scores
    for scorer, result in found.items():
        if result.reason:
            raise ValueError(f"{scorer} of clip {name}: {result.reason}; give another --seed or more --frames")
    return found


def change(damaged: Scored, clean: Scored) -> float:
    """How far the score of the whole clip has moved, in per cent of what it was."""
    assert damaged.whole is not None and clean.whole is not None  # noqa: PT018  (checked in `scored`)
    return 100 * (damaged.whole / clean.whole - 1)


def rise(mode: str, damaged: Scored, clean: Scored) -> float:
    """How much more a damaged clip drifts than the same one undamaged."""
    return damaged.drift[mode] - clean.drift[mode]


MEASURES: dict[str, Callable[[Scored, Scored], float]] = {
    "change": change,
    **{mode: partial(rise, mode) for mode in MODES},
}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over clips and its standard error; the error of one clip is NaN."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def rows_of(results: Results) -> list[dict]:
    """For every case and scorer, the change of the score and the rise of the drift by mode, over clips."""
    rows = []
    for case, scorers in next(iter(results.values())).items():
        for scorer in scorers if case != CLEAN else ():
            row: dict = {"damage": case.damage, "strength": case.strength, "scorer": scorer}
            for name, measure in MEASURES.items():
                found = [measure(by_case[case][scorer], by_case[CLEAN][scorer]) for by_case in results.values()]
                row[name], row[f"{name}_error"] = mean_and_error(found)
            rows.append(row)
    return rows


def clean_drifts(results: Results) -> list[dict]:
    """For every scorer, what the clips drift as they are, by mode: mean and standard error."""
    rows = []
    for scorer in next(iter(results.values()))[CLEAN]:
        row: dict = {"scorer": scorer}
        for mode in MODES:
            row[mode], row[f"{mode}_error"] = mean_and_error([r[CLEAN][scorer].drift[mode] for r in results.values()])
        rows.append(row)
    return rows


def over_strengths(rows: Sequence[dict], damage: str, scorer: str, key: str) -> list[float]:
    """A measure at growing strengths."""
    found = [row for row in rows if (row["damage"], row["scorer"]) == (damage, scorer)]
    return [row[key] for row in sorted(found, key=lambda row: row["strength"])]


def moved(rows: Sequence[dict], expected: Expectation, key: str, sign: int) -> float:
    """How far a measure went the way it has to: the smallest step from one strength to the next, from none on, or all
    the way to the greatest where it need not be steady."""
    values = [0.0, *over_strengths(rows, expected.damage, expected.scorer, key)]
    return float(min(sign * np.diff(values))) if expected.steady else sign * values[-1]
