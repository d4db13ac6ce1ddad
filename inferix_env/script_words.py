"""What a script may say: the names that a spec's actions have, and a world's keys by theirs.

Knows what a spec's actions are and what a card says of keys; parses no text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from engine import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.actions import neutral
from inferix_env.game_keys import is_game, key_actions

NEUTRAL = ("noop", "none")


def words_of_world(card: Mapping[str, Any], actions: ActionSpec) -> dict[str, Any]:
    """Name of a key -> the action that it is in the viewer: the card's "keys", or those of a Matrix-Game."""
    keys = card.get("keys") or (key_actions(actions, neutral(actions)) if is_game(actions) else {})
    return {key: action for key, action in keys.items() if "+" not in key}


def numbers_of(actions: ContinuousActions) -> DictActions:
    """A vector as parts of one number each."""
    names = actions.names or [f"number {i}" for i in range(actions.width)]
    numbers = [ContinuousActions((low,), (high,)) for low, high in zip(actions.low, actions.high, strict=True)]
    return DictActions(tuple(zip(names, numbers, strict=True)))


def key_names(part: ActionSpec) -> tuple[str, ...]:
    return part.names if isinstance(part, BinaryActions) else ()


def is_pedal(part: ActionSpec) -> TypeGuard[ContinuousActions]:
    """Whether it is one number from 0 to a bound, of which "all" is a natural amount."""
    return isinstance(part, ContinuousActions) and part.low == (0.0,) and bool(np.isfinite(part.high[0]))


def index_of(word: str, actions: DiscreteActions) -> int | None:
    """The discrete action of a name (any case), an integer, or a neutral word; None where there is none."""
    names = [name.casefold() for name in actions.names]
    if word.casefold() in names:
        return names.index(word.casefold())
    if word.casefold() in NEUTRAL:
        return 0
    return int(word) if re.fullmatch(r"[0-9]{1,9}", word) and int(word) < actions.n else None


def listed(actions: ActionSpec, words: Mapping[str, Any] | None = None) -> str:
    """What a script for these actions may say."""
    further = [*dict.fromkeys([*(words or {}), "noop"])]
    if isinstance(actions, DiscreteActions):
        return ", ".join(dict.fromkeys([*actions.names, f"0 to {actions.n - 1}", *further]))
    if isinstance(actions, TextActions):
        return f'prompts of up to {actions.longest} characters in double quotes, "" to keep the one before, noop'
    if isinstance(actions, BinaryActions):
        return ", ".join([*actions.names, *further])
    if isinstance(actions, ContinuousActions):
        vector = f"({','.join('x' * actions.width)}) from {actions.low} to {actions.high}"
        names = own_words(numbers_of(actions)) if actions.names else []
        return ", ".join([*names, vector, *further])
    return ", ".join([*own_words(actions), *further])


def own_words(actions: DictActions) -> list[str]:
    """What the parts are called in a script."""
    return [word for name, part in actions.parts for word in words_of_part(name, part)]


def words_of_part(name: str, part: ActionSpec) -> list[str]:
    if isinstance(part, BinaryActions) and part.names:
        return list(part.names)
    if isinstance(part, ContinuousActions | BinaryActions):
        return [name] * is_pedal(part) + [f"{name}({','.join('x' * part.width)})"]
    return [] if isinstance(part, DictActions | TextActions) else [name]
