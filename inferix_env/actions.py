"""Gymnasium spaces and key maps for what a spec's actions are. Their encoding lives in the engine's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from engine import ActionSpec, ContinuousActions, DiscreteActions

# pygame's key codes for keys that are not single characters (pygame itself is optional).
KEY_CODES = {"left": 1073741904, "right": 1073741903, "up": 1073741906, "down": 1073741905, "space": 32}


def space_of(actions: ActionSpec) -> gym.Space:
    """The Gymnasium space of an action spec."""
    if isinstance(actions, DiscreteActions):
        return gym.spaces.Discrete(actions.n)
    if isinstance(actions, ContinuousActions):
        return gym.spaces.Box(
            np.asarray(actions.low, np.float32), np.asarray(actions.high, np.float32), dtype=np.float32
        )
    return gym.spaces.Dict({name: space_of(part) for name, part in actions.parts})


def neutral(actions: ActionSpec) -> Any:
    """The action that asks for nothing: 0, zeros inside the bounds, or these by name."""
    if isinstance(actions, DiscreteActions):
        return 0
    if isinstance(actions, ContinuousActions):
        return np.clip(np.zeros(actions.width), actions.low, actions.high).astype(np.float32)
    return {name: neutral(part) for name, part in actions.parts}


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

    Combinations join key names with "+". No key held is the neutral action.
    """
    keys = card.get("keys")
    if keys is None and isinstance(actions, DiscreteActions):
        keys = {str(i): i for i in range(min(actions.n, 10))}
    mapped = {tuple(sorted(key_code(k) for k in combo.split("+"))): action for combo, action in (keys or {}).items()}
    return {(): neutral(actions), **mapped}
