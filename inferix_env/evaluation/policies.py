"""What presses the buttons while reality and dreams are played: streams of actions of a discrete world.

A policy takes a random generator and yields action indices for ever, blind to the frames, so that a dream can be
given just the actions that reality was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from engine import DiscreteActions, WorldSpec

Policy = Callable[[np.random.Generator], Iterator[int]]


def uniform(n: int) -> Policy:
    """A uniform action each step."""

    def play(rng: np.random.Generator) -> Iterator[int]:
        while True:
            yield int(rng.integers(n))

    return play


def sticky(n: int, mean: float = 6.0) -> Policy:
    """Keeps a uniform action for a geometric time of `mean` steps."""

    def play(rng: np.random.Generator) -> Iterator[int]:
        action = int(rng.integers(n))
        while True:
            yield action
            if rng.random() < 1 / mean:
                action = int(rng.integers(n))

    return play


def strafe(n: int, sides: tuple[int, int], shortest: int = 20, longest: int = 30, chance: float = 0.1) -> Policy:
    """The two sides in turn, each for 20 to 30 steps, one step in ten a uniform action instead."""

    def play(rng: np.random.Generator) -> Iterator[int]:
        side = int(rng.integers(2))
        while True:
            for _ in range(int(rng.integers(shortest, longest + 1))):
                yield int(rng.integers(n)) if rng.random() < chance else sides[side]
            side = 1 - side

    return play


def script(actions: Sequence[int]) -> Policy:
    """Just these actions, and no more."""
    return lambda rng: iter(actions)


def take(policy: Policy, rng: np.random.Generator, count: int) -> np.ndarray:
    """The first `count` actions of a policy, int64 [count]."""
    return np.fromiter(islice(policy(rng), count), np.int64, count)


def find_sides(spec: WorldSpec, card: Mapping[str, Any]) -> tuple[int, int]:
    """The actions (left, right): by the spec's names of its actions, else by the card's keys.

    Raises:
        ValueError: the actions are not discrete, or neither says which is which.
    """
    if not isinstance(spec.actions, DiscreteActions):
        raise ValueError(f"{spec.name} has {spec.actions.kind} actions: evaluation is written for discrete ones")
    named = {name: i for i, name in enumerate(spec.actions.names)}
    for known in (named, card.get("keys", {})):
        if "left" in known and "right" in known:
            return known["left"], known["right"]
    raise ValueError(f"{spec.name} does not say which actions are left and right: give --sides LEFT RIGHT")
