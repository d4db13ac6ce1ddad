"""Outcomes: rewards over the horizon, and whether the end head knows when episodes end. Part of fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine import Engine
from inferix_env.evaluation import metrics
from inferix_env.evaluation.episodes import Episode
from inferix_env.evaluation.lives import Asked, ask_all
from inferix_env.evaluation.measures import Measure, measure, measure_of
from inferix_env.evaluation.plots import DREAM, Axes, Line
from inferix_env.evaluation.stretches import Stretch
from inferix_env.evaluation.termination import EDGES, wilson

REWARD = "reward error a step"


def reward_measures(
    stretches: Sequence[Stretch], rewards: Mapping[str, Sequence[np.ndarray]], horizons: Sequence[int]
) -> list[Measure]:
    """The error of the mean reward of the first h steps, |dream - real|, by kind.

    Args:
        rewards: of each kind, for each stretch, float64 [S].
    """
    made = []
    given = {**rewards, "mean real reward": means_elsewhere(stretches)}
    for kind, runs in given.items():
        for h in horizons:
            pairs = [(s, run) for s, run in zip(stretches, runs, strict=True) if len(s) >= h]
            samples = {s.name: float(abs((run[:h] - s.rewards[:h]).mean())) for s, run in pairs}
            if samples:
                made.append(measure(REWARD, kind, samples, h, better="lower" if kind == "dream" else ""))
    return made


def means_elsewhere(stretches: Sequence[Stretch]) -> list[np.ndarray]:
    """For each stretch [S], the mean reward of a step of all others: what one knows who sees nothing."""
    sums, counts = (np.array([f(s) for s in stretches], np.float64) for f in (lambda s: s.rewards.sum(), len))
    return [
        np.full(len(s), (sums.sum() - a) / (counts.sum() - n)) for s, a, n in zip(stretches, sums, counts, strict=True)
    ]


def ask_each(engine: Engine, episodes: Sequence[Episode]) -> list[Asked]:
    """What the end head says at each real step, episode by episode."""
    asked = ask_all(engine, [e for e in episodes if e.steps])
    return [asked.of(int(i)) for i in np.unique(asked.owner)]


def end_measures(asked: Sequence[Asked]) -> list[Measure]:
    """Average precision, beside the base rate; calibration error and Brier score, beside the base rate's."""
    base = float(np.concatenate([a.ended for a in asked]).mean())
    if not base:
        return []
    name = "average precision of ends"
    return [
        measure_of(name, "dream", asked, lambda some: precision(some), better="higher"),
        measure_of(name, "base rate", asked, lambda some: float(np.concatenate([a.ended for a in some]).mean())),
        measure_of("calibration error of ends", "dream", asked, calibration_error, better="lower"),
        measure_of("Brier score of ends", "dream", asked, lambda some: brier(some, None), better="lower"),
        measure_of("Brier score of ends", "base rate", asked, lambda some: brier(some, base)),
    ]


def precision(asked: Sequence[Asked]) -> float:
    return metrics.average_precision(*joined(asked))


def joined(asked: Sequence[Asked]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and ends [S] of several episodes."""
    return np.concatenate([a.probabilities for a in asked]), np.concatenate([a.ended for a in asked])


def calibration_error(asked: Sequence[Asked]) -> float:
    """Expected calibration error (Naeini et al., 2015): mean |predicted - observed| of the bins, by their counts."""
    bins = metrics.reliability(*joined(asked), EDGES)
    count = sum(row["count"] for row in bins)
    return sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in bins) / count


def brier(asked: Sequence[Asked], constant: float | None) -> float:
    odds, ended = joined(asked)
    return float(np.square((odds if constant is None else constant) - ended).mean())


def calibration(asked: Sequence[Asked]) -> Axes:
    """The panel of predicted against observed ends."""
    bins = metrics.reliability(*joined(asked), EDGES)
    predicted, observed = (np.array([row[key] for row in bins]) for key in ("predicted", "observed"))
    points = Line("bins", predicted, observed, DREAM, error=wilson(observed, np.array([row["count"] for row in bins])))
    notes = [(row["predicted"], row["observed"], f"n={row['count']}") for row in bins]
    return Axes(
        "Calibration of ends", "predicted probability", "share that ended", [points], diagonal=True, notes=notes
    )
