"""Dreaming on from real histories under the real actions, frame by frame against what really followed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from engine import Engine
from inferix_env.evaluation import fire, metrics
from inferix_env.evaluation.dreaming import context_length, dream_rows, reconstruct
from inferix_env.evaluation.episodes import Episode, RealGame, pick_rows
from inferix_env.evaluation.findings import Check, Findings, Picture, Table
from inferix_env.evaluation.plots import COLOURS, DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.policies import sticky, strafe, uniform
from inferix_env.evaluation.sheets import sheet

TITLE = "Dream under the real actions"


@dataclass(frozen=True)
class Size:
    """Attributes: real episodes and their longest; sequences dreamed; horizons, and those without a target."""

    episodes: int = 90
    limit: int = 400
    sequences: int = 96
    horizons: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    free: tuple[int, ...] = (1, 2)
    shown: int = 4
    fire: fire.Size = field(default_factory=fire.Size)


QUICK = Size(episodes=12, limit=60, sequences=6, horizons=(1, 2, 4, 8), shown=2, fire=fire.Size(sequences=4, steps=4))


def collect(game: RealGame, sides: tuple[int, int], first_seed: int, size: Size) -> list[Episode]:
    """Episodes in equal parts under uniform, sticky and strafing actions."""
    n = game.spec.actions.width
    seeds = range(first_seed, first_seed + size.episodes)
    return list(game.play([uniform(n), sticky(n), strafe(n, sides)], seeds, size.limit, TITLE))


def measure(engine: Engine, episodes: list[Episode], rng: np.random.Generator, size: Size) -> Findings:
    """Dream from drawn rows and compare; then the same for rows that show fire."""
    length, steps = context_length(engine.spec), max(size.horizons)
    rows = pick_rows(episodes, length, steps, size.sequences, rng)
    real, dreamed = dream_rows(engine, episodes, rows, steps, rng, TITLE)
    last = np.stack([episodes[i].frames[t] for i, t in rows])
    table = [compare(engine, real[:, h - 1], dreamed[:, h - 1], last, h) for h in size.horizons]
    checks = [
        Check(f"PSNR gain, {steps_of(row['horizon'])}", row["gain"], low=2.5, unit="dB")
        for row in table
        if row["horizon"] not in size.free
    ]
    checks += [Check(f"sharpness, {steps_of(row['horizon'])}", row["sharpness"], low=0.8, high=1.25) for row in table]
    flight = fire.measure(engine, episodes, rng, size.fire)
    pictures = {
        "dream-horizons": Picture(draw_horizons(table), "Closeness, sharpness and fire over the horizon."),
        "dream-sequences": Picture(
            show(last, real, dreamed, size), "Reality above the dream from the same history, under the same actions."
        ),
        **flight.pictures,
    }
    tables = [as_table(table), *flight.tables]
    numbers = {"context": length, "sequences": size.sequences, "horizons": table, "fire": flight.numbers}
    return Findings(TITLE, describe(length, steps, size) + flight.method, checks, numbers, tables, pictures)


def compare(engine: Engine, real: np.ndarray, dreamed: np.ndarray, last: np.ndarray, horizon: int) -> dict[str, float]:
    """The numbers of one horizon; all frames uint8 [N, H, W, 3]."""
    fires, dreamed_fires = metrics.fire_pixels(real).sum(), metrics.fire_pixels(dreamed).sum()
    return {
        "horizon": horizon,
        "psnr": metrics.psnr(real, dreamed),
        "repeat": metrics.psnr(real, last),
        "gain": metrics.psnr_gain(real, dreamed, last),
        "sharpness": float(
            metrics.sharpness(dreamed).mean() / metrics.sharpness(reconstruct(engine.model, real)).mean()
        ),
        "fire": float(dreamed_fires / fires) if fires else float("nan"),
    }


def describe(length: int, steps: int, size: Size) -> str:
    return f"""{size.sequences} rows are drawn from {size.episodes} real episodes (a third each under uniform, sticky
and strafing actions). From each, with the K = {length} real frames up to it, their actions and variables as context,
{steps} steps are dreamed under the actions that were really taken, past any end that the world draws. *PSNR gain* is
the PSNR of the dream against the real frames, less that of repeating the last real frame, squared errors pooled over
the sequences. *Sharpness* is the mean absolute Laplacian of the dreamed frames over that of the codec's own
reconstructions of the real ones. *Fire* is the number of fire pixels dreamed over that in reality (no target)."""


def steps_of(horizon: float) -> str:
    return "1 step" if horizon == 1 else f"{horizon:g} steps"


def as_table(rows: list[dict[str, float]]) -> Table:
    header = ["steps", "PSNR, dB", "repeat-last-frame, dB", "gain, dB", "sharpness", "fire pixels, dream / real"]
    keys = ["horizon", "psnr", "repeat", "gain", "sharpness", "fire"]
    return Table("By horizon", header, [[row[key] for key in keys] for row in rows])


def draw_horizons(rows: list[dict[str, float]]) -> np.ndarray:
    x = [row["horizon"] for row in rows]

    def line(key: str, label: str, colour: str) -> Line:
        return Line(label, x, [row[key] for row in rows], colour)

    over = partial(Axes, x="steps dreamed", log_x=True, ticks=x)
    closeness = [line("psnr", "dream", DREAM), line("repeat", "repeat last frame", REAL)]
    gain, fires = [line("gain", "dream", DREAM)], [line("fire", "", COLOURS[1])]
    sharp = [line("sharpness", "sharpness / codec's", DREAM)]
    return plot(
        [
            over(title="Closeness to reality", y="PSNR, dB", lines=closeness),
            over(title="Gain over repeating", y="PSNR gain, dB", lines=gain, targets=(2.5,)),
            over(title="Sharpness", y="ratio", lines=sharp, band=(0.8, 1.25)),
            over(title="Fire", y="fire pixels, dream / real", lines=fires, floor=0),
        ],
        columns=2,
    )


def show(last: np.ndarray, real: np.ndarray, dreamed: np.ndarray, size: Size) -> np.ndarray:
    """The sequences with the median amounts of fire and above, at every horizon."""
    order = np.argsort(metrics.fire_pixels(real).sum(1), kind="stable")
    picked = order[np.linspace(len(order) // 2, len(order) - 1, size.shown + 2).astype(int)[1:-1]]
    at = [h - 1 for h in size.horizons]
    rows = []
    for i in picked:
        rows += [
            (name, np.concatenate([last[i : i + 1], frames[i, at]]))
            for name, frames in (("real", real), ("dream", dreamed))
        ]
    return sheet(rows, ["last real", *(steps_of(h) for h in size.horizons)], pairs=True)
