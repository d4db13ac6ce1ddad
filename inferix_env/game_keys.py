"""The keys of a Matrix-Game: which of a keyboard's move and which turn the view, alone and together.

Magnitudes and signs are those that Matrix-Game 2 was trained with: mouse = (pitch, up positive; yaw, right positive).
Knows names of keys and what a spec's actions are; knows no window.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeGuard

import numpy as np

from engine import ActionSpec, BinaryActions, DictActions

# How far the mouse moves in a frame while a key turns the view.
TURN = 0.1
KEYS = {"forward": "w", "back": "s", "left": "a", "right": "d"}
RUNNER_KEYS = {"nomove": "q", "jump": "w", "slide": "s", "turnleft": "z", "turnright": "c"}
RUNNER_KEYS |= {"leftside": "a", "rightside": "d"}
Turns = dict[str, tuple[float, float]]
PITCH: Turns = {"up": (TURN, 0), "down": (-TURN, 0), "i": (TURN, 0), "k": (-TURN, 0)}
YAW: Turns = {"left": (0, -TURN), "right": (0, TURN), "j": (0, -TURN), "l": (0, TURN)}
# Where a car is steered, there is no pitch.
STEERING: Turns = {"a": (0, -TURN), "d": (0, TURN), "left": (0, -TURN), "right": (0, TURN)}
VIEWS = {(TURN, 0): "look up", (-TURN, 0): "look down", (0, -TURN): "turn left", (0, TURN): "turn right"}


def is_game(actions: ActionSpec) -> TypeGuard[DictActions]:
    """Whether these are a keyboard's keys, and perhaps a mouse."""
    return isinstance(actions, DictActions) and isinstance(dict(actions.parts).get("keyboard"), BinaryActions)


def key_actions(actions: DictActions, neutral: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Combinations of keys ("w+left") -> actions; of two that exclude each other, such as W and S, never both."""
    keyboard = dict(actions.parts)["keyboard"]
    assert isinstance(keyboard, BinaryActions)
    made = {}
    views = list(turns(keyboard)) if "mouse" in neutral else [("", (0.0, 0.0))]
    for (look, mouse), (held, names) in product(views, sorted(moves(keyboard), key=place)):
        combination = "+".join(filter(None, (held, look)))
        if combination:
            pressed = np.isin(keyboard.names, names).astype(np.int8) if names else neutral["keyboard"]
            turned = {"mouse": np.array(mouse, np.float32)} if "mouse" in neutral else {}
            made[combination] = {"keyboard": pressed, **turned}
    return made


def moves(keyboard: BinaryActions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(keys held, names of what they press), none first."""
    if "nomove" in keyboard.names:  # always just one is down
        yield from [("", ()), *((RUNNER_KEYS[name], (name,)) for name in keyboard.names)]
        return
    axes = [[name for name in pair if name in keyboard.names] for pair in (("forward", "back"), ("left", "right"))]
    for names in product(*(["", *axis] for axis in axes)):
        pressed = tuple(filter(None, names))
        yield "+".join(KEYS[name] for name in pressed), pressed


def place(move: tuple[str, tuple[str, ...]]) -> tuple[int, int]:
    """Where keys are listed: single ones first, W A S D."""
    held, names = move
    return len(names), "wasd".find(held[:1])


def turns(keyboard: BinaryActions) -> Iterator[tuple[str, tuple[float, float]]]:
    """(keys held, where the mouse goes), none first."""
    drives = "left" not in keyboard.names
    still: Turns = {"": (0.0, 0.0)}
    pitches, yaws = (still, still | STEERING) if drives else (still | PITCH, still | YAW)
    for (up, pitch), (side, yaw) in product(pitches.items(), yaws.items()):
        yield "+".join(filter(None, (up, side))), (pitch[0], yaw[1])


def label(action: dict[str, Any], actions: DictActions) -> str:
    """What an action does, in words: "forward, turn left"."""
    keyboard = dict(actions.parts)["keyboard"]
    assert isinstance(keyboard, BinaryActions)
    pitch, yaw = (round(float(x), 6) for x in action.get("mouse", (0, 0)))
    names = [name for name, down in zip(keyboard.names, action["keyboard"], strict=True) if down]
    return ", ".join(filter(None, [*names, VIEWS.get((pitch, yaw))]))
