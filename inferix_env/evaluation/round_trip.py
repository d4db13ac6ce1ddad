"""Round trip: to the right and back again, in the dream and in the game, and whether the view returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine import Engine
from inferix_env.actions import neutral
from inferix_env.evaluation import metrics
from inferix_env.evaluation.dreaming import context_length, dream_rows
from inferix_env.evaluation.episodes import Episode, RealGame
from inferix_env.evaluation.findings import Check, Findings, Picture, Table
from inferix_env.evaluation.plots import DREAM, REAL, TARGET, Axes, Line, plot
from inferix_env.evaluation.policies import Policy, sticky, take
from inferix_env.evaluation.sheets import sheet

TITLE = "Round trip"


@dataclass(frozen=True)
class Size:
    """How much is travelled.

    Attributes:
        episodes: real ones; those that end on the way are left out.
        fewest: starts that must remain.
        leg: steps to each side.
        roam: sticky steps before, at most: all episodes of a game may begin with the same view.
        rest: neutral steps after them, so that nothing moves at the start.
        shown: trips shown.
    """

    episodes: int = 64
    fewest: int = 20
    leg: int = 10
    roam: int = 20
    rest: int = 6
    shown: int = 3


QUICK = Size(episodes=6, fewest=2, leg=3, roam=3, rest=2, shown=2)


def trip(n: int, sides: tuple[int, int], still: int, size: Size) -> Policy:
    """Roam, rest, go right, come back left."""

    def play(rng: np.random.Generator) -> Iterator[int]:
        yield from (int(a) for a in take(sticky(n), rng, int(rng.integers(size.roam + 1))))
        yield from [still] * size.rest
        yield from [sides[1]] * size.leg + [sides[0]] * size.leg

    return play


def collect(game: RealGame, sides: tuple[int, int], first_seed: int, size: Size) -> list[Episode]:
    """Episodes that end with the trip, whole.

    Raises:
        ValueError: too few come that far.
    """
    policy = trip(game.spec.actions.width, sides, neutral(game.spec.actions), size)
    seeds = range(first_seed, first_seed + size.episodes)
    played = game.play([policy], seeds, size.roam + size.rest + 2 * size.leg, TITLE)
    whole = [e for e in played if not e.terminated and len(e.frames) == len(e.choices)]
    if len(whole) < size.fewest:
        raise ValueError(f"{len(whole)} of {size.episodes} round trips came back: expected {size.fewest}; try --seed")
    return whole


def measure(engine: Engine, episodes: list[Episode], rng: np.random.Generator, size: Size) -> Findings:
    """Dream the same trips from the same views."""
    rows = [(i, len(e.frames) - 1 - 2 * size.leg) for i, e in enumerate(episodes)]
    real, dreamed = dream_rows(engine, episodes, rows, 2 * size.leg, rng, TITLE)
    view = np.stack([episodes[i].frames[t] for i, t in rows])
    numbers = {"real": distances(view, real), "dream": distances(view, dreamed)}
    (turn, back), (dream_turn, dream_back) = ([x[size.leg - 1], x[-1]] for x in numbers.values())
    checks = [Check("PSNR of the returned view, dream less reality", dream_back - back, -2, 2, "dB")]
    cells = [
        [f"at the turn, after {size.leg} steps", turn, dream_turn],
        [f"returned, after {2 * size.leg} steps", back, dream_back],
    ]
    tables = [Table("PSNR against the view at the start, dB", ["", "reality", "dream"], cells)]
    pictures = {
        "round-trip": Picture(draw_trip(numbers, size), "How far the view is from the one at the start, out and back."),
        "round-trip-frames": Picture(show(view, real, dreamed, size), "The same trip in reality and in the dream."),
    }
    method = describe(len(rows), context_length(engine.spec), size)
    return Findings(TITLE, method, checks, {**numbers, "starts": len(rows)}, tables, pictures)


def describe(starts: int, length: int, size: Size) -> str:
    return f"""{starts} starts: real episodes that roam for up to {size.roam} steps under sticky actions, then rest
for {size.rest}. From there {size.leg} steps to the right, then {size.leg} to the left, in the real game and in the
dream, which is given the last {length} real frames up to the start. The PSNR is that of a frame against the last real
frame before the trip, squared errors pooled over the starts. Reality itself does not return quite: monsters move, and
walls are in the way. The returned view may be up to 2 dB closer or further in the dream than in reality."""


def distances(view: np.ndarray, frames: np.ndarray) -> list[float]:
    """PSNR of every step's frames [N, S, H, W, 3] against the view at the start [N, H, W, 3], dB [S]."""
    return [metrics.psnr(view, frames[:, step]) for step in range(frames.shape[1])]


def draw_trip(numbers: dict[str, list[float]], size: Size) -> np.ndarray:
    x = np.arange(1, 2 * size.leg + 1)
    lines = [Line("reality", x, numbers["real"], REAL), Line("dream", x, numbers["dream"], DREAM)]
    back = numbers["real"][-1]
    lines.append(Line("target range", x[-1:], [back], TARGET, "points", error=[2]))
    title = f"{size.leg} steps right, {size.leg} left"
    return plot([Axes(title, "step", "PSNR against the start, dB", lines)], width=6)


def show(view: np.ndarray, real: np.ndarray, dreamed: np.ndarray, size: Size) -> np.ndarray:
    """A few trips: the start, halfway out, the turn, halfway back, the return."""
    at = np.unique([size.leg // 2 - 1, size.leg - 1, size.leg + size.leg // 2 - 1, 2 * size.leg - 1])
    rows = []
    for i in range(size.shown):
        rows += [
            (name, np.concatenate([view[i : i + 1], x[i, at]])) for name, x in (("real", real), ("dream", dreamed))
        ]
    return sheet(rows, ["start", *(f"step {t + 1}" for t in at)], pairs=True)
