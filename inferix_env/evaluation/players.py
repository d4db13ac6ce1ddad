"""Players: what presses the buttons in reality and in dreams, by what they see. Named by a text, made for a world.

    random                      a uniform action each step
    sticky, sticky:12           keeps a random action for a geometric time of a mean of 6 (12) steps
    strafe                      left and right in turn (discrete worlds that name them)
    noop                        the action that asks for nothing
    script:"right*8, left*8"    as `inferix_env.scripts` reads it, again from its first when it runs out
    package.module:name         a policy of your own: a function (frame uint8 [H, W, 3], rng) -> action, or a class that
                                is made with the action space and whose instances are such functions
    package.module:name:TEXT    what `name(TEXT, env)` returns: a callable frame -> action, with `reset(seed)` if it has
                                one; of `env` there is the action and the observation space

Knows spaces and frames; knows no env and no engine.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np

from engine import ActionSpec, DiscreteActions, TextActions, WorldSpec
from inferix_env.actions import neutral, space_of
from inferix_env.evaluation.policies import find_sides, strafe
from inferix_env.script_words import words_of_world
from inferix_env.scripts import load_script

KNOWN = "random, sticky, sticky:MEAN, strafe, noop, script:TEXT, module:name or module:name:TEXT"
STREAM = 1  # beside a seed: an env seeded with the same number draws from another stream
Choose = Callable[[np.ndarray, np.random.Generator], Any]


class Player:
    """Plays episodes: `reset(seed)`, then an action for each frame; the same seed and frames give the same actions.

    Args:
        name: the text that it was made from.
        actions: of the world; what is chosen is checked.
        begin: makes what chooses, for each episode anew.
    """

    def __init__(self, name: str, actions: ActionSpec, begin: Callable[[int], Choose]):
        self.name, self.actions, self.begin = name, actions, begin
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.rng = np.random.default_rng((seed, STREAM))
        self.choose = self.begin(seed)

    def __call__(self, frame: np.ndarray) -> Any:
        """The next action.

        Raises:
            ValueError: what was chosen is no action of the world.
        """
        action = self.choose(frame, self.rng)
        try:
            self.actions.encode(action)
        except ValueError as error:
            raise ValueError(f"policy {self.name}: {error}") from None
        return action

    def twin(self) -> Player:
        """Another one of the same kind, to play elsewhere at the same time."""
        return Player(self.name, self.actions, self.begin)


def make_player(text: str, spec: WorldSpec, card: Mapping[str, Any] | None = None) -> Player:
    """The player that a text names.

    Raises:
        ValueError: it names none, or the world has no such actions.
    """
    name, colon, argument = text.partition(":")
    actions = spec.actions
    if isinstance(actions, TextActions):
        raise ValueError(f"{spec.name} is steered by prompts: players choose other actions")
    if text == "random":
        return Player(text, actions, lambda seed: lambda frame, rng: draw(actions, rng))
    if name == "sticky":
        mean = mean_of(text, argument) if colon else 6.0
        return Player(text, actions, lambda seed: Sticky(actions, mean))
    if text == "noop":
        return Player(text, actions, lambda seed: lambda frame, rng: neutral(actions))
    if text == "strafe":
        return blind(text, actions, strafe(actions.width, find_sides(spec, card or {})))
    if name == "script" and colon:
        script = load_script(argument, actions, words_of_world(card or {}, actions))
        return blind(text, actions, lambda rng: cycle(script))
    if "." in name and colon:
        return of_module(text, spec)
    raise ValueError(f"policy {text!r}: expected {KNOWN}")


def mean_of(text: str, argument: str) -> float:
    try:
        mean = float(argument)
    except ValueError:
        mean = 0.0
    if not 1 <= mean < 1e6:
        raise ValueError(f"policy {text!r}: expected a mean number of steps of at least 1, such as sticky:12")
    return mean


def draw(actions: ActionSpec, rng: np.random.Generator) -> Any:
    """A uniform action."""
    if isinstance(actions, DiscreteActions):
        return int(rng.integers(actions.n))
    space = space_of(actions)
    space.seed(int(rng.integers(2**31)))
    return space.sample()


class Sticky:
    """Keeps a uniform action for a geometric time."""

    def __init__(self, actions: ActionSpec, mean: float):
        self.actions, self.mean = actions, mean
        self.action: Any = None

    def __call__(self, frame: np.ndarray, rng: np.random.Generator) -> Any:
        if self.action is None or rng.random() < 1 / self.mean:
            self.action = draw(self.actions, rng)
        return self.action


def blind(text: str, actions: ActionSpec, policy: Callable[[np.random.Generator], Iterator[Any]]) -> Player:
    """A player of a stream of actions, whatever is seen."""

    def begin(seed: int) -> Choose:
        stream = policy(np.random.default_rng((seed, STREAM)))
        return lambda frame, rng: next(stream)

    return Player(text, actions, begin)


def of_module(text: str, spec: WorldSpec) -> Player:
    """A player of the user's own.

    Raises:
        ValueError: there is none of that name.
    """
    module, name, argument = [*text.split(":", 2), ""][:3]
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {text!r}: {error}") from None
    space = space_of(spec.actions)
    if argument:
        seen = gym.spaces.Box(0, 255, (*spec.frame, 3), np.uint8)
        made = found(argument, SimpleNamespace(action_space=space, observation_space=seen))
        return Player(text, spec.actions, lambda seed: restarted(made, seed))
    if not isinstance(found, type):
        return Player(text, spec.actions, lambda seed: found)
    make: Callable[[Any], Any] = found
    return Player(text, spec.actions, lambda seed: restarted(make(space), seed))


def restarted(policy: Any, seed: int) -> Choose:
    """A copy of a policy at the beginning of an episode."""
    fresh = copy.deepcopy(policy)
    if hasattr(fresh, "reset"):
        fresh.reset(seed)
    return (lambda frame, rng: fresh(frame, rng)) if takes_two(fresh) else (lambda frame, rng: fresh(frame))


def takes_two(policy: Any) -> bool:
    """Whether a policy is called with a generator beside the frame."""
    return len(inspect.signature(policy).parameters) > 1
