"""Policies: random, sticky, scripted, trained. What plays when no one learns.

A policy is a callable `policy(observation) -> action` with `reset(seed)`, called before each episode: same seed, same
actions. Each draws from its own copy of the action space, so the env's own generators are left alone. Knows Gymnasium
spaces; does not know what an observation is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from agents.driver import Driver
from agents.replay import RecordedPolicy
from agents.trained import load_policy as load_policy
from agents.trained import make_trained, world_behind
from inferix_env.scripts import actions_of, load_script, words_of

KNOWN = (
    'random, sticky, sticky:0.8, script:"right*8, left*8, noop*4", script:PATH.jsonl, recorded:LOG.jsonl, trained, '
    "trained:PATH, driver (of CarRacing)"
)
# Beside a seed: an env seeded with the same number draws from another stream.
STREAM = 1


class Policy(Protocol):
    """Chooses actions."""

    def reset(self, seed: int) -> None:
        """Begin an episode."""

    def __call__(self, observation: Any) -> Any:
        """The next action."""


class RandomPolicy:
    """A uniform action each step, of any action space."""

    def __init__(self, space: gym.Space):
        self.space = copy.deepcopy(space)
        self.rng = np.random.default_rng()

    def reset(self, seed: int) -> None:
        self.rng = np.random.default_rng((seed, STREAM))
        self.space.seed(int(self.rng.integers(2**31)))

    def __call__(self, observation: Any) -> Any:
        return self.space.sample()


class StickyPolicy(RandomPolicy):
    """Keeps its last action with the probability `stickiness`, else draws a new one (maybe the same).

    Raises:
        ValueError: `stickiness` is not in [0, 1].
    """

    def __init__(self, space: gym.Space, stickiness: float = 0.9):
        if not 0 <= stickiness <= 1:
            raise ValueError(f"stickiness {stickiness}: expected a probability from 0 to 1")
        super().__init__(space)
        self.stickiness = stickiness
        self.last: Any = None

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.last = None

    def __call__(self, observation: Any) -> Any:
        if self.last is None or self.rng.random() >= self.stickiness:
            self.last = self.space.sample()
        return self.last


class ScriptPolicy:
    """Plays a list of actions in order, and again from its first when it runs out; the seed changes nothing.

    Raises:
        ValueError: the list is empty.
    """

    def __init__(self, script: Sequence):
        if not script:
            raise ValueError("a script needs at least one action")
        self.script = list(script)
        self.step = 0

    def reset(self, seed: int) -> None:
        self.step = 0

    def __call__(self, observation: Any) -> Any:
        self.step += 1
        return self.script[(self.step - 1) % len(self.script)]


def make_policy(text: str, env: gym.Env, world: str | Path | None = None, greedy: bool | None = None) -> Policy:
    """The policy that a text names, for an env: see KNOWN for what there is.

    Args:
        world: whose shipped policy "trained" is; by default the env's own.
        greedy: of a trained policy, see `load_policy`.

    Raises:
        ValueError: the text names no policy, or its script does not parse.
    """
    name, colon, argument = text.partition(":")
    if text == "random":
        return RandomPolicy(env.action_space)
    if text == "sticky":
        return StickyPolicy(env.action_space)
    if text == "driver":
        return Driver(env.action_space)
    if name == "sticky":
        return StickyPolicy(env.action_space, parse_stickiness(argument))
    if name == "script" and colon:
        return ScriptPolicy(load_script(argument, actions_of(env), words_of(env)))
    if name == "recorded" and colon:
        return RecordedPolicy(argument, env.action_space)
    if name == "trained":
        return make_trained(argument or world or world_behind(env), env, greedy)
    raise ValueError(f"policy {text!r}: expected one of {KNOWN}")


def parse_stickiness(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"policy 'sticky:{text}': expected a probability, such as sticky:0.8") from None
