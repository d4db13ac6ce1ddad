"""Fireballs in flight: whether a dream carries them on towards the player as reality does.

Part of the section dream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine import Engine
from inferix_env.evaluation import metrics
from inferix_env.evaluation.dreaming import context_length, dream_rows
from inferix_env.evaluation.episodes import Episode, draw
from inferix_env.evaluation.findings import Findings, Picture, Table
from inferix_env.evaluation.plots import COLOURS, DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.sheets import sheet

TOLERANCE = 4  # pixels by which a dreamed fireball may lie beside the real one
FEWEST = 4  # fire pixels that make a frame show fire: fewer are specks on a monster


@dataclass(frozen=True)
class Size:
    """Attributes: sequences dreamed, steps of each, sequences shown."""

    sequences: int = 64
    steps: int = 8
    shown: int = 4


def measure(engine: Engine, episodes: list[Episode], rng: np.random.Generator, size: Size) -> Findings:
    """Dream from rows that show fire; compare the largest blob of fire, step by step."""
    rows = burning(episodes, context_length(engine.spec), size, rng)
    real, dreamed = dream_rows(engine, episodes, rows, size.steps, rng, "fireballs")
    last = np.stack([episodes[i].frames[t] for i, t in rows])
    table = by_step(last, real, dreamed)
    header = [
        "steps",
        "with fire",
        "area real, px",
        "area dream, px",
        "kept",
        "recall",
        "kept, repeat",
        "recall, repeat",
    ]
    keys = ["step", "burning", "real_area", "dream_area", "kept", "recall", "kept_repeat", "recall_repeat"]
    tables = [Table("Fireballs in flight", header, [[row[key] for key in keys] for row in table])]
    pictures = {
        "fire-growth": Picture(
            draw_growth(table), "How the largest blob of fire grows, and whether the dream keeps it."
        ),
        "fire-sequences": Picture(show(last, real, dreamed, size), "Fireballs in flight, reality above the dream."),
    }
    return Findings("Fire", describe(size), [], {"sequences": size.sequences, "steps": table}, tables, pictures)


def describe(size: Size) -> str:
    return f"""

*Fireballs in flight*: {size.sequences} further sequences, dreamed for {size.steps} steps, whose last real frame shows
at least {FEWEST} fire pixels. *Area* is the mean size of the largest connected blob of fire (0 where there is none).
Over the sequences where reality still shows fire, *kept* is the share in which the dream has fire within {TOLERANCE}
pixels of reality's largest blob, and *recall* the share of real fire pixels with dreamed fire within {TOLERANCE}
pixels; the same is asked of the last real frame repeated, to which nothing moves. Fire that is yet to be thrown
cannot be foreseen, so no dream reaches 1. No targets."""


def burning(episodes: list[Episode], length: int, size: Size, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Drawn (episode, row)s that show fire, with context before and reality after them."""
    found = []
    for i, episode in enumerate(episodes):
        shows = metrics.fire_pixels(episode.frames) >= FEWEST
        found += [(i, int(t)) for t in np.nonzero(shows)[0] if length - 1 <= t < len(episode.frames) - size.steps]
    return draw(found, size.sequences, rng, "rows that show fire, with context before them and frames after")


def by_step(last: np.ndarray, real: np.ndarray, dreamed: np.ndarray) -> list[dict[str, float]]:
    """A row of numbers for each step, row 0 the last real frame itself.

    Args:
        last: uint8 [N, H, W, 3]; the others [N, S, H, W, 3].
    """
    repeated = metrics.fire_mask(last)
    table = [compare(0, repeated, repeated, repeated)]
    for step in range(real.shape[1]):
        fires, dreams = metrics.fire_mask(real[:, step]), metrics.fire_mask(dreamed[:, step])
        table.append(compare(step + 1, fires, dreams, repeated))
    return table


def compare(step: int, real: np.ndarray, dreamed: np.ndarray, repeated: np.ndarray) -> dict[str, float]:
    """The numbers of one step from masks of fire, bool [N, H, W]."""
    blobs = np.stack([metrics.largest_blob(mask) for mask in real])
    burning = real.sum((1, 2)) >= FEWEST
    return {
        "step": step,
        "burning": int(burning.sum()),
        "real_area": float(blobs.sum((1, 2)).mean()),
        "dream_area": float(np.mean([metrics.largest_blob(mask).sum() for mask in dreamed])),
        "kept": kept(blobs[burning], dreamed[burning]),
        "recall": metrics.recall(real[burning], dreamed[burning], TOLERANCE),
        "kept_repeat": kept(blobs[burning], repeated[burning]),
        "recall_repeat": metrics.recall(real[burning], repeated[burning], TOLERANCE),
    }


def kept(blobs: np.ndarray, fires: np.ndarray) -> float:
    """Share of blobs [N, H, W] that have fire within the tolerance; NaN where there are none."""
    met = (blobs & metrics.dilate(fires, TOLERANCE)).any((1, 2))
    return float(met.mean()) if len(met) else float("nan")


def draw_growth(table: list[dict[str, float]]) -> np.ndarray:
    x = [row["step"] for row in table]

    def line(key: str, label: str, colour: str) -> Line:
        return Line(label, x, [row[key] for row in table], colour)

    area = [line("real_area", "reality", REAL), line("dream_area", "dream", DREAM)]
    share = [line("kept", "dream: blobs kept", DREAM), line("recall", "dream: pixel recall", COLOURS[2])]
    share += [
        line("kept_repeat", "last frame: blobs kept", REAL),
        line("recall_repeat", "last frame: recall", COLOURS[1]),
    ]
    return plot(
        [
            Axes("Largest blob of fire", "steps after the last real frame", "mean area, pixels", area, floor=0),
            Axes("Fire where reality has it", "steps after the last real frame", "share", share, floor=0),
        ]
    )


def show(last: np.ndarray, real: np.ndarray, dreamed: np.ndarray, size: Size) -> np.ndarray:
    """Sequences whose fire grows most between the last real frame and the end, in reality."""
    growth = metrics.fire_pixels(real)[:, size.steps // 2] - metrics.fire_pixels(last)
    rows = []
    for i in np.argsort(-growth, kind="stable")[: size.shown]:
        rows += [(name, np.concatenate([last[i : i + 1], x[i]])) for name, x in (("real", real), ("dream", dreamed))]
    return sheet(rows, ["last real", *(f"step {s + 1}" for s in range(size.steps))], pairs=True)
