"""Steering: whether a dream shows the actions it is given, by a probe of inverse dynamics learned on real frames.

Of discrete actions the probe names the one that led from a frame to the next; of others it says their numbers. Part of
fidelity. Knows frames and encoded actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from engine import DiscreteActions, WorldSpec
from inferix_env.evaluation.episodes import Episode
from inferix_env.evaluation.measures import Measure, measure
from inferix_env.evaluation.probe import Pairs, ProbeSize, guess, read, train_probe, train_reader
from inferix_env.evaluation.stretches import Stretch

DISCRETE, NUMBERS = "actions read right (balanced)", "actions explained (R²)"


def name_of(spec: WorldSpec) -> str:
    """What the measure is called for a world's actions."""
    return DISCRETE if isinstance(spec.actions, DiscreteActions) else NUMBERS


def steer_measures(
    spec: WorldSpec,
    learned_from: Sequence[Episode],
    stretches: Sequence[Stretch],
    frames: Mapping[str, Sequence[np.ndarray]],
    size: ProbeSize,
    seed: int,
    device: torch.device,
) -> list[Measure]:
    """Learn the probe on real episodes, and ask it of each kind of frames which of the real actions they show.

    Args:
        frames: of each kind, for each stretch, uint8 [S, H, W, 3]; reality is added.
    """
    discrete = isinstance(spec.actions, DiscreteActions)
    given = {"reality": [s.frames for s in stretches], **frames}
    runs = [e.frames for e in learned_from]
    labels = [e.actions[: len(e.frames)] for e in learned_from]
    pairs = pairs_of(runs, labels, discrete)
    train = train_probe if discrete else train_reader
    probe = train(pairs, spec.actions.width, size, seed, device)
    asked = pairs_of([s.frames for s in stretches], [s.actions for s in stretches], discrete)
    made = []
    for kind, shown in given.items():
        found = (guess if discrete else read)(probe, Pairs(shown, asked.rows, asked.labels), device)
        samples = (balanced if discrete else unexplained)(asked, found, [s.name for s in stretches])
        merit = "higher" if kind == "dream" else ""
        statistic = "mean" if discrete else "explained"
        made.append(measure(name_of(spec), kind, samples, better=merit, statistic=statistic))  # type: ignore[arg-type]
    return made


def pairs_of(runs: Sequence[np.ndarray], actions: Sequence[np.ndarray], discrete: bool) -> Pairs:
    """All neighbouring frames within each run, and what led from one to the other."""
    rows = np.array([(i, t) for i, frames in enumerate(runs) for t in range(1, len(frames))]).reshape(-1, 2)
    labels = np.stack([actions[i][t] for i, t in rows])
    return Pairs(list(runs), rows, labels.argmax(-1) if discrete else labels)


def balanced(asked: Pairs, found: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """For each run a number whose mean over runs is the balanced accuracy over all pairs: chance is one over n."""
    classes, counts = np.unique(asked.labels, return_counts=True)
    weight = dict(zip(classes.tolist(), len(asked) / (len(classes) * counts), strict=True))
    right = (found == asked.labels) * np.array([weight[label] for label in asked.labels.tolist()])
    return shares(right / len(asked), asked, names)


def unexplained(asked: Pairs, found: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """For each run a number whose mean is 1 - R² of the actions, the mean over their numbers that vary."""
    spread = asked.labels.var(0)
    varies = spread > 1e-9
    errors = (np.square(found - asked.labels)[:, varies] / spread[varies]).mean(-1)
    return shares(errors / len(asked), asked, names)


def shares(parts: np.ndarray, asked: Pairs, names: Sequence[str]) -> dict[str, float]:
    """Sums of each run's parts, times the number of runs that have any."""
    owners = asked.rows[:, 0]
    present = np.unique(owners)
    return {names[i]: float(parts[owners == i].sum() * len(present)) for i in present}
