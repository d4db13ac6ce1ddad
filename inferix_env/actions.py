"""Gymnasium spaces and key maps for what a spec's actions are, and a step's action as rows. Their encoding lives in
the engine's spec.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np

from engine import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.game_keys import is_game, key_actions

# pygame's key codes for keys that are not single characters (pygame itself is optional).
KEY_CODES = {"left": 1073741904, "right": 1073741903, "up": 1073741906, "down": 1073741905, "space": 32}
# Keys of a continuous world that act together.
MOST_HELD = 3
# What samples of a prompt are made of. A step takes any characters.
PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "
# The key that stands for no key, where one has to be down (Matrix-Game's templerun).
NO_KEY = "nomove"


def space_of(actions: ActionSpec) -> gym.Space:
    """The Gymnasium space of an action spec."""
    if isinstance(actions, DiscreteActions):
        return gym.spaces.Discrete(actions.n)
    if isinstance(actions, ContinuousActions):
        return gym.spaces.Box(
            np.asarray(actions.low, np.float32), np.asarray(actions.high, np.float32), dtype=np.float32
        )
    if isinstance(actions, BinaryActions):
        return gym.spaces.MultiBinary(actions.n)
    if isinstance(actions, TextActions):
        return gym.spaces.Text(actions.longest, min_length=0, charset=PRINTABLE)
    return gym.spaces.Dict({name: space_of(part) for name, part in actions.parts})


def neutral(actions: ActionSpec) -> Any:
    """The action that asks for nothing: 0, zeros inside the bounds, no key, an empty prompt, or these by name."""
    if isinstance(actions, DiscreteActions):
        return 0
    if isinstance(actions, ContinuousActions):
        return np.clip(np.zeros(actions.width), actions.low, actions.high).astype(np.float32)
    if isinstance(actions, BinaryActions):
        return np.array([name == NO_KEY for name in actions.names] or [False] * actions.n, np.int8)
    if isinstance(actions, TextActions):
        return ""
    return {name: neutral(part) for name, part in actions.parts}


def encoded_rows(actions: ActionSpec, action: Any, count: int, several: bool = True) -> np.ndarray:
    """A step's action, encoded for each of its `count` frames: held over all, or given for each.

    Args:
        action: of the space, or an array with a leading axis of `count`; of a dict of actions, each part by itself.
        several: whether steps of this world may have more than one frame; else an action is just one of the space.

    Returns:
        float32 [count, A].

    Raises:
        ValueError: it does not fit; says what was expected.
    """
    if isinstance(actions, DictActions):
        names = [name for name, _ in actions.parts]
        if not isinstance(action, Mapping) or set(action) != set(names):
            actions.encode(action)  # says what is wrong
        parts = [encoded_rows(part, action[name], count, several) for name, part in actions.parts]
        return np.concatenate(parts, axis=1)
    if not several or isinstance(actions, TextActions) or not is_per_frame(actions, action):
        return np.tile(actions.encode(action), (count, 1))
    if len(action) != count:
        raise ValueError(
            f"an action for each of {len(action)} frames: expected {count}, the frames of this step, or one action "
            "to hold over all of them"
        )
    return np.stack([actions.encode(row) for row in action])


def is_per_frame(actions: ActionSpec, action: Any) -> bool:
    """Whether an action has a leading axis of frames."""
    try:
        return np.ndim(action) == (1 if isinstance(actions, DiscreteActions) else 2)
    except ValueError:  # rows of different lengths
        return False


def key_code(name: str) -> int:
    """pygame's code of a key called "left", "space" or by its character.

    Raises:
        ValueError: no such key.
    """
    if name in KEY_CODES:
        return KEY_CODES[name]
    if len(name) != 1:
        raise ValueError(f"key {name!r}: expected a character or one of {sorted(KEY_CODES)}")
    return ord(name)


def key_map(card: Mapping[str, Any], actions: ActionSpec) -> dict[tuple[int, ...], Any]:
    """Which held keys mean which action: the card's "keys" ({"left": 1}), or digits for a discrete world.

    Combinations join key names with "+". No key held is the neutral action. A continuous world's keys are vectors
    ({"left": [-1, 0, 0]}), and those held together add up; so do those of a world whose actions are keys, which press
    themselves where they are called as keys are. A Matrix-Game's are in game_keys.

    Raises:
        ValueError: no such key, or a vector that does not fit the world's actions.
    """
    keys = card.get("keys")
    if keys is None and isinstance(actions, DiscreteActions):
        keys = {str(i): i for i in range(min(actions.n, 10))}
    if keys is None and is_game(actions):
        keys = key_actions(actions, neutral(actions))
    if keys is None and isinstance(actions, BinaryActions):
        keys = {name: row for name, row in zip(actions.names, np.eye(actions.n), strict=False) if is_key(name)}
    mapped = {tuple(sorted(key_code(k) for k in combo.split("+"))): action for combo, action in (keys or {}).items()}
    if isinstance(actions, ContinuousActions | BinaryActions):
        mapped = summed({codes: key_vector(action, actions) for codes, action in mapped.items()}, actions)
    return {(): neutral(actions), **mapped}


def is_key(name: str) -> bool:
    return name in KEY_CODES or len(name) == 1


def key_vector(value: Any, actions: ContinuousActions | BinaryActions) -> np.ndarray:
    """What a card says that a key does, float32 [A], or int8 [A] of keys.

    Raises:
        ValueError: it is no action of this world.
    """
    try:
        vector = np.asarray(value, neutral(actions).dtype)
        actions.encode(vector)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card's key for {value!r}: {error}; expected {actions.width} numbers") from None
    return vector


def summed(
    keys: dict[tuple[int, ...], np.ndarray], actions: ContinuousActions | BinaryActions
) -> dict[tuple[int, ...], np.ndarray]:
    """Keys alone and up to `MOST_HELD` together: vectors add up to the bounds; a combination given as such stays."""
    single = [codes[0] for codes in keys if len(codes) == 1]
    held = (codes for count in range(1, MOST_HELD + 1) for codes in combinations(sorted(single), count))
    totals = {codes: np.sum([keys[(code,)] for code in codes], axis=0) for codes in held}
    low, high = (0, 1) if isinstance(actions, BinaryActions) else (actions.low, actions.high)
    kind = neutral(actions).dtype
    return {codes: np.clip(total, low, high).astype(kind) for codes, total in totals.items()} | keys
