"""Behaviour policies for collecting: what presses the buttons while the data is recorded.

A behaviour is text, so that a data set's card can name it: "random", "hold:6" (keep a random action for a
geometric time of mean 6 steps), "extremes:6" (the same, every part of a continuous action at one of its bounds or at
rest, as keys would have it), "cycle:20:1/2" (discrete actions 1 and 2 in turn, each for about 20 steps, wider
than chance ever strays), "still" (the neutral action), or "package.module:name" for a policy of the user's own: a
callable `(frame uint8 [H, W, 3], rng) -> action`, or a class, called with the action space for each episode anew, whose
instances are such callables and may remember.

Any of them can be made noisy, so that the data shows how mistakes look and how they are mended. "still~0.1" takes a
random action one step in ten, "still~0.1:8" holds it for a mean of 8 steps, and "still@0.2:8" adds an
Ornstein-Uhlenbeck process to continuous actions: standard deviation 0.2 of half their range, forgotten over 8 steps.
A mix is weighted: "random*1, hold:6*3, still@0.2:8~0.1*1".
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


def extreme_action(space, rng: np.random.Generator) -> object:
    """An action whose every number is at a bound or neutral, each as likely; for what is not a Box, any action."""
    if hasattr(space, "spaces"):
        return {name: extreme_action(part, rng) for name, part in space.spaces.items()}
    if not is_bounded_box(space):
        return random_action(space, rng)
    choices = np.stack([space.low, np.asarray(neutral_action(space)), space.high])
    return np.take_along_axis(choices, rng.integers(3, size=(1, *space.shape)), 0)[0]


def mistake(space, rng: np.random.Generator) -> object:
    """A random action; a continuous one is as often an extreme one."""
    return extreme_action(space, rng) if rng.random() < 0.5 else random_action(space, rng)


def is_bounded_box(space) -> bool:
    return hasattr(space, "low") and bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())


class Hold:
    """Keeps an action of `draw(space, rng)` for a geometric time of mean `mean` steps."""

    def __init__(self, space, mean: float, draw: Callable[..., object] = random_action):
        self.space, self.mean, self.draw = space, mean, draw
        self.action: object = None

    def __call__(self, frame: np.ndarray, rng: np.random.Generator) -> object:
        if self.action is None or rng.random() < 1.0 / self.mean:
            self.action = self.draw(self.space, rng)
        return self.action


class Slip:
    """Another behaviour whose place a random action takes, with a chance a step, for `mean` steps in the mean."""

    def __init__(self, inner: Behaviour, space, chance: float, mean: float = 1.0):
        self.inner, self.space, self.chance, self.mean = inner, space, chance, mean
        self.action: object = None

    def __call__(self, frame: np.ndarray, rng: np.random.Generator) -> object:
        meant = self.inner(frame, rng)  # asked throughout: it may remember what it saw
        if self.action is not None and rng.random() < 1 / self.mean:
            self.action = None
        if self.action is None and rng.random() < self.chance:
            self.action = mistake(self.space, rng)
        return meant if self.action is None else self.action


class Drift:
    """Another behaviour plus an Ornstein-Uhlenbeck process (Uhlenbeck & Ornstein, 1930), clipped to a Box's bounds.

    Args:
        spread: standard deviation of the process, in half ranges.
        steps: over which it forgets.

    Raises:
        ValueError: the space is no bounded Box.
    """

    def __init__(self, inner: Behaviour, space, spread: float, steps: float = 8.0):
        if not is_bounded_box(space):
            raise ValueError(f"behaviour noise '@': expected a bounded Box of actions, and this env's are {space}")
        self.inner, self.space, self.spread = inner, space, spread
        self.keep = float(np.exp(-1 / steps))
        self.state: np.ndarray | None = None

    def __call__(self, frame: np.ndarray, rng: np.random.Generator) -> object:
        fresh = rng.standard_normal(self.space.shape)
        self.state = fresh if self.state is None else self.keep * self.state + np.sqrt(1 - self.keep**2) * fresh
        noise = self.spread * self.state * (self.space.high - self.space.low) / 2
        action = np.asarray(self.inner(frame, rng)) + noise
        return np.clip(action, self.space.low, self.space.high).astype(self.space.dtype)


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
    text, _, slips = text.strip().partition("~")
    name, _, drift = text.partition("@")
    behaviour = _make_plain(name.strip(), space)
    if drift:
        behaviour = Drift(behaviour, space, *noise_of(drift))
    return Slip(behaviour, space, *noise_of(slips)) if slips else behaviour


def noise_of(text: str) -> list[float]:
    """ "0.1" or "0.1:8" as numbers.

    Raises:
        ValueError: it is something else.
    """
    try:
        size, *steps = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"behaviour noise {text!r}: expected a number, or number:steps, such as 0.1:8") from None
    if size < 0 or len(steps) > 1 or any(step < 1 for step in steps):
        raise ValueError(f"behaviour noise {text!r}: expected a number of at least 0, then steps of at least 1")
    return [size, *steps]


def _make_plain(name: str, space) -> Behaviour:
    kind, _, argument = name.partition(":")
    if kind == "random":
        return lambda frame, rng: random_action(space, rng)
    if kind == "still":
        return lambda frame, rng: neutral_action(space)
    if kind == "hold":
        return Hold(space, float(argument or 6))
    if kind == "extremes":
        return Hold(space, float(argument or 6), extreme_action)
    if kind == "cycle" and ":" in argument:
        mean, actions = argument.split(":")
        return Cycle([int(a) for a in actions.split("/")], float(mean))
    if "." in kind and argument:
        return of_module(kind, argument, space)
    raise ValueError(
        f"unknown behaviour {name!r}: expected random, still, hold:MEAN, extremes:MEAN, cycle:MEAN:A/B or "
        "package.module:name"
    )


def of_module(module: str, name: str, space) -> Behaviour:
    """A behaviour of the user's own: a function as it is, a class built for this episode.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"behaviour {module}:{name}: {error}") from None
    return found(space) if isinstance(found, type) else found
