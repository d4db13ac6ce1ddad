"""Control: whether a dream shows the actions it is given as clearly as the game does."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine import Engine
from inferix_env.evaluation import metrics
from inferix_env.evaluation.dreaming import context_length, dream_rows, reconstruct
from inferix_env.evaluation.episodes import Episode, RealGame, pick_rows
from inferix_env.evaluation.findings import Check, Findings, Picture, Table
from inferix_env.evaluation.plots import COLOURS, DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.policies import sticky, uniform
from inferix_env.evaluation.probe import Pairs, ProbeSize, guess, train_probe

TITLE = "Control"


@dataclass(frozen=True)
class Size:
    """Attributes: real episodes to learn from, to test with, and the longest; sequences dreamed and their steps."""

    train: int = 200
    test: int = 60
    limit: int = 200
    sequences: int = 96
    steps: int = 20
    probe: ProbeSize = field(default_factory=ProbeSize)


QUICK = Size(train=16, test=10, limit=60, sequences=6, steps=4, probe=ProbeSize(epochs=3))


@dataclass(frozen=True)
class Real:
    """Episodes to learn the probe from, and others to test it with."""

    train: list[Episode]
    test: list[Episode]


def collect(game: RealGame, sides: tuple[int, int], first_seed: int, size: Size) -> Real:
    """Episodes under uniform and sticky actions, in turn."""
    n = game.spec.actions.width
    seeds = range(first_seed, first_seed + size.train + size.test)
    episodes = list(game.play([uniform(n), sticky(n)], seeds, size.limit, TITLE))
    return Real(episodes[: size.train], episodes[size.train :])


def measure(engine: Engine, real: Real, rng: np.random.Generator, size: Size) -> Findings:
    """Learn the probe from real pairs; compare how it reads real and dreamed pairs of the same rows and actions."""
    n, device = engine.spec.actions.width, engine.model.device
    probe = train_probe(pairs_of(real.train), n, size.probe, int(rng.integers(2**31)), device)
    rows = pick_rows(real.test, context_length(engine.spec), size.steps, size.sequences, rng)
    truth, dreamed = dream_rows(engine, real.test, rows, size.steps, rng, TITLE)
    labels = np.stack([real.test[i].choices[t + 1 : t + 1 + size.steps] for i, t in rows])
    kinds = {"real": truth, "codec": reconstruct(engine.model, truth), "dream": dreamed}
    guesses = {name: guess(probe, sequences(frames, labels), device) for name, frames in kinds.items()}
    asked = sequences(truth, labels).labels
    numbers = {name: score(asked, guessed, n) for name, guessed in guesses.items()}
    numbers["pairs"] = {
        "train": len(pairs_of(real.train)),
        "test": len(asked),
        "counts": np.bincount(asked, minlength=n),
    }
    ratio = numbers["dream"]["balanced"] / numbers["real"]["balanced"]
    checks = [Check("balanced accuracy on dreamed pairs over real ones", ratio, low=0.9)]
    caption = "Of the pairs that each action led, the share the probe reads right."
    pictures = {"control": Picture(draw_recalls(numbers, names_of(engine, n)), caption)}
    return Findings(TITLE, describe(numbers, size), checks, numbers, [as_table(numbers, names_of(engine, n))], pictures)


def describe(numbers: dict, size: Size) -> str:
    counts = numbers["pairs"]
    return f"""A probe (three convolutions on two consecutive frames) learns which action led from one to the other,
from {counts["train"]:,} pairs of {size.train} real episodes, all classes of the same weight. From {size.sequences}
rows of {size.test} other real episodes {size.steps} steps are dreamed under the real actions, and the probe reads the
{counts["test"]:,} pairs of two dreamed frames, and the real pairs of the very same rows: same actions, same ages,
walls met as often. Actions are uniform in half of the episodes and held for a mean of 6 steps in the others.
*Balanced accuracy* is the mean over actions of the share read right; chance is {1 / len(counts["counts"]):.3f}.
*Codec* is the real pairs encoded and decoded. The target is on the balanced accuracy of dreamed pairs over that of
real ones."""


def pairs_of(episodes: list[Episode]) -> Pairs:
    """All pairs of real episodes."""
    rows = np.array([(i, t) for i, e in enumerate(episodes) for t in range(1, len(e.frames))])
    labels = np.array([episodes[i].choices[t] for i, t in rows])
    return Pairs([e.frames for e in episodes], rows, labels)


def sequences(frames: np.ndarray, choices: np.ndarray) -> Pairs:
    """The pairs within frames uint8 [N, S, H, W, 3]; choices [N, S] led to each."""
    rows = np.array([(i, t) for i in range(frames.shape[0]) for t in range(1, frames.shape[1])])
    return Pairs(list(frames), rows, choices[:, 1:].ravel())


def score(labels: np.ndarray, guesses: np.ndarray, n: int) -> dict:
    recalls = [
        metrics.accuracy(labels[labels == c], guesses[labels == c]) if (labels == c).any() else 0.0 for c in range(n)
    ]
    return {
        "accuracy": metrics.accuracy(labels, guesses),
        "balanced": metrics.balanced_accuracy(labels, guesses),
        "recalls": recalls,
    }


def names_of(engine: Engine, n: int) -> list[str]:
    return list(getattr(engine.spec.actions, "names", ())) or [f"action {i}" for i in range(n)]


def as_table(numbers: dict, names: list[str]) -> Table:
    rows = [
        [title, numbers[kind]["balanced"], numbers[kind]["accuracy"], *numbers[kind]["recalls"]]
        for kind, title in (
            ("real", "real pairs"),
            ("codec", "real pairs through the codec"),
            ("dream", "dreamed pairs"),
        )
    ]
    return Table("What the probe reads right", ["", "balanced accuracy", "accuracy", *names], rows)


def draw_recalls(numbers: dict, names: list[str]) -> np.ndarray:
    parts = (
        ("real", "real pairs", REAL, -0.15),
        ("codec", "through the codec", COLOURS[1], 0),
        ("dream", "dreamed", DREAM, 0.15),
    )
    lines = []
    for kind, label, colour, aside in parts:
        y = [*numbers[kind]["recalls"], numbers[kind]["balanced"]]
        lines.append(Line(label, np.arange(len(y)) + aside, y, colour, "points"))
    target = 0.9 * numbers["real"]["balanced"]
    title = "What the probe reads right (target: of the mean)"
    return plot([Axes(title, "action", "share", lines, (target,), names=[*names, "mean"], floor=0)], width=5.4)
