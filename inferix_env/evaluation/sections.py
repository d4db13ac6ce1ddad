"""The sections of an evaluation, in order: what each collects of reality and how it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import Engine
from inferix_env.evaluation import codec, control, dream, free_run, round_trip, termination
from inferix_env.evaluation.episodes import RealGame
from inferix_env.evaluation.findings import Findings

SEEDS = 1_000  # start seeds that a section has to itself, so that it measures the same whichever others run


@dataclass(frozen=True)
class Section:
    """One measure of a world.

    Attributes:
        size, quick: how much is measured, in earnest and to try the command out.
        collect: (game, (left, right), first seed, size) -> what `measure` takes of reality.
        measure: (engine, reality, rng, size) -> findings; a function of these alone.
    """

    size: Any
    quick: Any
    collect: Callable[[RealGame, tuple[int, int], int, Any], Any]
    measure: Callable[[Engine, Any, np.random.Generator, Any], Findings]


SECTIONS = {
    "codec": Section(codec.Size(), codec.QUICK, codec.collect, codec.measure),
    "dream": Section(dream.Size(), dream.QUICK, dream.collect, dream.measure),
    "free-run": Section(free_run.Size(), free_run.QUICK, free_run.collect, free_run.measure),
    "round-trip": Section(round_trip.Size(), round_trip.QUICK, round_trip.collect, round_trip.measure),
    "control": Section(control.Size(), control.QUICK, control.collect, control.measure),
    "termination": Section(termination.Size(), termination.QUICK, termination.collect, termination.measure),
}


def run(name: str, engine: Engine, game: RealGame, sides: tuple[int, int], seed: int, quick: bool) -> Findings:
    """Collect reality for a section and measure it."""
    section = SECTIONS[name]
    size = section.quick if quick else section.size
    place = list(SECTIONS).index(name)
    reality = section.collect(game, sides, seed + place * SEEDS, size)
    return section.measure(engine, reality, np.random.default_rng([seed, place]), size)
