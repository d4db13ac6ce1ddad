"""Free running: whether a dream that nobody corrects stays a picture of the game for thousands of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from engine import Engine, Start
from inferix_env.evaluation.dreaming import GROUP, walk
from inferix_env.evaluation.episodes import RealGame
from inferix_env.evaluation.faults import Faults, draw_windows, find_faults
from inferix_env.evaluation.findings import Check, Findings, Picture, Table
from inferix_env.evaluation.plots import DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.policies import Policy, strafe, take
from inferix_env.evaluation.sheets import sheet
from inferix_env.evaluation.tracks import Track, look, mean_at, spread, track

TITLE = "Free running"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        episodes, limit: real episodes, and the longest one.
        worlds, steps: dreamed on for so long.
        young: further worlds, dreamed for the first `old` - 1 steps only: fire is rare and comes in bursts, so a few
            worlds say little about these ages.
        old: from this age on, the real frames of all such ages are one.
        middle: where the old ages are parted in two.
        window: steps that are looked at together for collapse, saturation and freezing.
        ages: of the frames shown, for `shown` worlds.
    """

    episodes: int = 300
    limit: int = 600
    worlds: int = 16
    young: int = 32
    steps: int = 2_000
    old: int = 150
    middle: int = 1_000
    window: int = 50
    ages: tuple[int, ...] = (1, 50, 150, 500, 1_000, 1_500, 2_000)
    shown: int = 4


QUICK = Size(24, 60, worlds=4, young=2, steps=32, old=8, middle=20, window=6, ages=(1, 4, 8, 16, 32), shown=2)


@dataclass(frozen=True)
class Real:
    """Reality: tracks of episodes, their first rows to dream from, old frames to show, and what pressed the buttons."""

    tracks: list[Track]
    starts: list[Start]
    frames: np.ndarray
    policy: Policy


def collect(game: RealGame, sides: tuple[int, int], first_seed: int, size: Size) -> Real:
    """Strafing episodes. Only their tracks are kept: the frames would fill gigabytes.

    Raises:
        ValueError: none gets as old as asked.
    """
    policy = strafe(game.spec.actions.width, sides)
    seeds = range(first_seed, first_seed + size.episodes)
    tracks, starts, old = [], [], []
    for episode in game.play([policy], seeds, size.limit, TITLE):
        if len(episode.frames) < 2:
            continue
        tracks.append(track(episode.frames))
        first = episode.rows(0, 1)
        starts.append(Start(first.frames.copy(), first.actions, first.variables))  # a view would keep all frames
        if len(episode.frames) > size.old:
            old.append(episode.frames[size.old].copy())
    if not old:
        raise ValueError(f"no real episode lasts {size.old} steps: choose another --seed")
    return Real(tracks, starts, np.stack(old), policy)


def measure(engine: Engine, real: Real, rng: np.random.Generator, size: Size) -> Findings:
    """Dream on and on, and compare with real frames of the same age."""
    tracks, shown = run(engine, real, rng, size)
    rates = [compare(name, real.tracks, tracks, low, high, rng, size) for name in NAMES for low, high in spans(size)]
    faults = find_faults(real.tracks, tracks[: size.worlds], size.window)
    checks = [Check(f"windows {name}", len(ages), low=0, high=0) for name, ages in faults.ages.items()]
    checks += [Check(f"{row['what']}, ages {row['ages']}", row["ratio"], low=0.7, high=1.3) for row in rates]
    header = ["", "ages", "real", "±", "dream", "±", "dream / real"]
    keys = ["what", "ages", "real", "real_error", "dream", "dream_error", "ratio"]
    tables = [Table("Against real frames of the same age", header, [[row[key] for key in keys] for row in rates])]
    pictures = {
        "free-run-age": Picture(
            draw_ages(real.tracks, tracks, size), "Fire and sharpness over age; errors are standard errors."
        ),
        "free-run-windows": Picture(draw_windows(faults), "Every window of every world, and the bounds it must keep."),
        "free-run-frames": Picture(
            show(real, shown, size), f"Real frames of age {size.old} in the first row; below, dreams as they age."
        ),
    }
    numbers = {
        "rates": rates,
        "faults": {"bounds": faults.bounds, "ages": faults.ages, "windows": len(faults.dream.age)},
    }
    return Findings(TITLE, describe(faults, size), checks, numbers, tables, pictures)


NAMES = {"fire": "fire pixels", "sharpness": "sharpness"}


def spans(size: Size) -> list[tuple[int, int]]:
    """Ages [low, high) that have targets."""
    edges = [1, size.old, size.middle, size.steps + 1]
    return list(pairwise(edges))


def describe(faults: Faults, size: Size) -> str:
    lowest, highest, saturated, distance = (faults.bounds[k] for k in ("lowest", "highest", "saturated", "distance"))
    return f"""{size.worlds} worlds start from the first frames of real episodes and are dreamed for {size.steps:,}
steps, ends ignored, the named variables held at the start's; {size.young} more are dreamed for the first
{size.old - 1} steps, since fire is rare and bursts. In dreams and in reality the actions are strafing ones: left and
right in turn, each for 20 to 30 steps, one step in ten a uniform action. No other blind play lasts long enough to be
compared with. Reality is {size.episodes} episodes of at most {size.limit} steps.

*Fire* is the mean number of fire pixels a frame, *sharpness* the mean absolute Laplacian. Up to age {size.old - 1}
the real and the dreamed mean give every age the same weight; from age {size.old} on, dreamed frames are compared with
all real frames of age {size.old} or more. Errors are standard errors, by drawing runs again.

A *window* is {size.window} steps of one world. It is *frozen* where the mean change from frame to frame is below
{lowest:.3g} grey levels, half of the lowest real window's, *boiling* above {highest:.3g}, twice the highest;
*saturated* where more than {saturated:.3g} of the pixels have a channel at 2 or less, or at 253 or more, without
being black; *collapsed* where its colour histogram is further than {distance:.3g} (total variation) from that of all
real frames: each twice the furthest that any real window goes. Not one window may be any of these."""


def run(engine: Engine, real: Real, rng: np.random.Generator, size: Size) -> tuple[list[Track], np.ndarray]:
    """Tracks of all worlds, the long ones first, and the frames to show, uint8 [shown, ages, H, W, 3]."""
    count = size.worlds + size.young
    order = rng.permutation(len(real.starts))
    starts = [real.starts[order[i % len(order)]] for i in range(count)]
    tracks, kept = [], np.zeros((size.shown, len(size.ages), *engine.spec.frame, 3), np.uint8)
    total = size.worlds * size.steps + size.young * (size.old - 1)
    with tqdm(total=total, desc=TITLE, unit="step", leave=False) as bar:
        for group, steps in groups(size):
            looks, before = [], np.stack([starts[i].frames[-1] for i in group])
            for age, frames in enumerate(free(engine, [starts[i] for i in group], real.policy, steps, rng), start=1):
                looks.append(look(before, frames))
                if group[0] == 0 and age in size.ages:
                    kept[:, size.ages.index(age)] = frames[: size.shown]
                before = frames
                bar.update(len(group))
            columns = [np.stack(column, axis=1) for column in zip(*looks, strict=True)]
            tracks += [Track(*(column[i] for column in columns)) for i in range(len(group))]
    return tracks, kept


def groups(size: Size) -> Iterator[tuple[range, int]]:
    """Indices of worlds that are stepped together, and for how long."""
    for first, last, steps in ((0, size.worlds, size.steps), (size.worlds, size.worlds + size.young, size.old - 1)):
        for i in range(first, last, GROUP):
            yield range(i, min(i + GROUP, last)), steps


def free(
    engine: Engine, starts: list[Start], policy: Policy, steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Frames of each step, uint8 [N, H, W, 3], of worlds that all go their own ways."""
    seeds = rng.integers(2**62, size=len(starts))
    choices = np.concatenate([take(policy, np.random.default_rng(int(seed)), steps) for seed in seeds])
    actions = engine.spec.actions.encode_rows(choices).reshape(len(starts), steps, -1)
    return walk(engine, starts, actions, seeds, hold=True)


def compare(
    name: str, real: list[Track], dreamed: list[Track], low: int, high: int, rng: np.random.Generator, size: Size
) -> dict:
    """Real and dreamed mean of a number over ages [low, high), and their ratio."""
    young = low < size.old
    real_high = high if young else 10**9
    real_low = low if young else size.old
    means = mean_at(real, name, real_low, real_high, even=young), mean_at(dreamed, name, low, high, even=young)
    return {
        "what": NAMES[name],
        "ages": f"{low} to {high - 1}",
        "real": means[0],
        "real_error": spread(real, name, real_low, real_high, rng, young),
        "dream": means[1],
        "dream_error": spread(dreamed, name, low, high, rng, young),
        "ratio": means[1] / means[0] if means[0] else float("nan"),
    }


def draw_ages(real: list[Track], dreamed: list[Track], size: Size) -> np.ndarray:
    """Fire and sharpness over age, young ages closer than all ages."""
    rng = np.random.default_rng(0)
    panels = []
    for name, unit in (("fire", "fire pixels a frame"), ("sharpness", "mean absolute Laplacian")):
        old = mean_at(real, name, size.old, 10**9)
        for title, high, parts in (("first ages", size.old, 6), ("all ages", size.steps, 8)):
            runs = ((real, "reality", REAL), (dreamed, "dream", DREAM))
            lines = [line_of(*x, name, high, max(1, high // parts), rng) for x in runs]
            band = (0.7 * old, 1.3 * old) if high > size.old else None
            panels.append(Axes(f"{NAMES[name].capitalize()}, {title}", "age, steps", unit, lines, band=band, floor=0))
    return plot(panels, columns=2)


def line_of(
    tracks: list[Track], label: str, colour: str, name: str, high: int, step: int, rng: np.random.Generator
) -> Line:
    """Means over every `step` ages below `high`, as far as two tracks reach."""
    lows = [low for low in range(1, high, step) if sum(len(t) >= low for t in tracks) > 1]
    y = [mean_at(tracks, name, low, low + step) for low in lows]
    errors = [spread(tracks, name, low, low + step, rng) for low in lows]
    return Line(label, np.array(lows) + step / 2, y, colour, error=errors)


def show(real: Real, shown: np.ndarray, size: Size) -> np.ndarray:
    count = len(size.ages)
    truth = real.frames[np.arange(count) % len(real.frames)]
    rows = [(f"real,\nage {size.old}", truth), *((f"world {i + 1}", frames) for i, frames in enumerate(shown))]
    return sheet(rows, [f"age {age}" for age in size.ages])
