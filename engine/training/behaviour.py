"""Behaviour policies for collecting: what presses the buttons while the data is recorded.

A behaviour is text, so that a data set's card can name it: "random", "hold:6" (keep a random action for a
geometric time of mean 6 steps), "cycle:20:1/2" (discrete actions 1 and 2 in turn, each for about 20 steps, wider
than chance ever strays), "still" (the neutral action), or "package.module:function" for a policy of
the user's own, a callable `(frame uint8 [H, W, 3], rng) -> action`. Any of them can be made noisy: "still~0.1" takes
a random action one step in ten. A mix is weighted: "random*1, hold:6*3, still~0.1*1".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

Behaviour = Callable[[np.ndarray, np.random.Generator], object]


def random_action(space, rng: np.random.Generator) -> object:
    """A uniform action of a Gymnasium space, drawn from `rng` (the space's own generator is left alone)."""
    space.seed(int(rng.integers(2**31)))
    return space.sample()


def neutral_action(space) -> object:
    """The action that asks for nothing: zeros, inside the space."""
    if hasattr(space, "spaces"):
        return {name: neutral_action(part) for name, part in space.spaces.items()}
    if hasattr(space, "n"):
        return int(getattr(space, "start", 0))
    return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)


class Hold:
    """Keeps a random action for a geometric time of mean `mean` steps."""

    def __init__(self, space, mean: float):
        self.space, self.mean = space, mean
        self.action: object = None

    def __call__(self, frame: np.ndarray, rng: np.random.Generator) -> object:
        if self.action is None or rng.random() < 1.0 / self.mean:
            self.action = random_action(self.space, rng)
        return self.action


class Cycle:
    """Takes discrete actions in turn, each for `mean` steps, give or take a third."""

    def __init__(self, actions: list[int], mean: float):
        self.actions, self.mean, self.left, self.index = actions, mean, 0, -1

    def __call__(self, frame: np.ndarray, rng: np.random.Generator) -> object:
        if self.left <= 0:
            self.index = self.index + 1 if self.index >= 0 else int(rng.integers(len(self.actions)))
            self.left = round(self.mean * rng.uniform(0.67, 1.33))
        self.left -= 1
        return self.actions[self.index % len(self.actions)]


def parse_mix(text: str) -> list[tuple[str, float]]:
    """Split "hold:6*3, random*1" into names and weights that sum to one."""
    parts = [part.strip().rpartition("*") if "*" in part else (part.strip(), "*", "1") for part in text.split(",")]
    try:
        mix = [(name.strip(), float(weight)) for name, _, weight in parts]
    except ValueError:
        raise ValueError(f"behaviour mix {text!r}: expected 'name*weight, name*weight', weights as numbers") from None
    total = sum(weight for _, weight in mix)
    if total <= 0 or any(weight < 0 for _, weight in mix):
        raise ValueError(f"behaviour mix {text!r}: weights must be positive")
    return [(name, weight / total) for name, weight in mix]


def make_behaviour(text: str, space) -> Behaviour:
    """Build one behaviour for one episode.

    Raises:
        ValueError: the text names no behaviour.
    """
    name, _, noise = text.partition("~")
    inner = _make_plain(name.strip(), space)
    if not noise:
        return inner
    chance = float(noise)
    return lambda frame, rng: random_action(space, rng) if rng.random() < chance else inner(frame, rng)


def _make_plain(name: str, space) -> Behaviour:
    kind, _, argument = name.partition(":")
    if kind == "random":
        return lambda frame, rng: random_action(space, rng)
    if kind == "still":
        return lambda frame, rng: neutral_action(space)
    if kind == "hold":
        return Hold(space, float(argument or 6))
    if kind == "cycle" and ":" in argument:
        mean, actions = argument.split(":")
        return Cycle([int(a) for a in actions.split("/")], float(mean))
    if "." in kind and argument:
        return getattr(importlib.import_module(kind), argument)
    raise ValueError(
        f"unknown behaviour {name!r}: expected random, still, hold:MEAN, cycle:MEAN:A/B or package.module:function"
    )
