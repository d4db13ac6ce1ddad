"""What keys mean: the world's own become actions, the others are commands to the session.

Knows codes and names of keys; knows no window and no pygame.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from engine import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.game_keys import is_game, label

# What a key does, unless the world takes it for itself; the second key then still does it.
COMMANDS = {
    "reset": (("r", "f5"), "start again with the next seed"),
    "pause": (("space", "f6"), "pause"),
    "single": (("n", "f7"), "one step, while paused"),
    "screenshot": (("s", "f2"), "save a picture"),
    "record": (("v", "f3"), "start or end a recording"),
    "help": (("f1",), "this help"),
    "quit": (("escape",), "quit"),
}
# What a key does in a world of prompts, before all else.
PROMPTING = {"prompt": (("t", "return"), "type a prompt: Enter sends it, Esc leaves it")}
# More caps than these do not fit beside the numbers: of keys that do the same one is shown then.
MOST_CAPS = 8


class Keys:
    """Which keys are down, and what that means as an action.

    A key that was tapped between two steps counts for the next one. Of the combinations that are held the longest
    wins, then the one with the key pressed last.
    """

    def __init__(self, keymap: dict[tuple[int, ...], Any]):
        self.keymap = keymap
        self.codes = list(dict.fromkeys(code for combination in keymap for code in combination))
        self.held: dict[int, int] = {}
        self.tapped: dict[int, int] = {}
        self.presses = itertools.count()

    def press(self, code: int, tap: bool = True) -> None:
        self.held[code] = next(self.presses)
        if tap:
            self.tapped[code] = self.held[code]

    def release(self, code: int) -> None:
        self.held.pop(code, None)

    def clear(self) -> None:
        self.held, self.tapped = {}, {}

    def any(self) -> bool:
        """Whether any key acts on the next step."""
        return bool(self.held or self.tapped)

    def take(self) -> Any:
        """The action of the next step; taps are used up."""
        down = {**self.tapped, **self.held}
        self.tapped = {}
        possible = [keys for keys in self.keymap if all(code in down for code in keys)]
        return self.keymap[max(possible, key=lambda keys: (len(keys), max((down[code] for code in keys), default=-1)))]


def commands_of(actions: ActionSpec) -> dict[str, tuple[tuple[str, ...], str]]:
    """What a session can be told in a world with such actions: command -> (keys, what they do)."""
    return {**PROMPTING, **COMMANDS} if isinstance(actions, TextActions) else dict(COMMANDS)


def free_commands(taken: set[str], commands: dict[str, tuple[tuple[str, ...], str]] | None = None) -> dict[str, str]:
    """Key -> what it does in a session, for the keys that the world does not take."""
    rows = (COMMANDS if commands is None else commands).items()
    return {key: command for command, (keys, _) in rows for key in keys if key not in taken}


def shown_caps(keymap: dict[tuple[int, ...], Any]) -> list[tuple[int, ...]]:
    """Which keys have a cap beside the numbers: each its own, or, where they are many, one for all that do the same."""
    single = {codes[0]: str(action) for codes, action in keymap.items() if len(codes) == 1}
    codes = list(dict.fromkeys(code for combination in keymap for code in combination))
    if len(codes) <= MOST_CAPS or len(single) < len(codes):
        return [(code,) for code in codes]
    alike: dict[str, list[int]] = {}
    for code in codes:
        alike.setdefault(single[code], []).append(code)
    return [tuple(same) for same in alike.values()]


def rows_of_help(
    keymap: dict[tuple[int, ...], Any], names: dict[int, str], actions: ActionSpec, commands: dict[str, str]
) -> list[tuple[list[str], str]]:
    """(names of keys, what they do): the world's actions, then the session's commands."""
    acts: dict[str, list[str]] = {}
    for codes, action in keymap.items():
        if len(codes) == 1 or not (is_game(actions) or isinstance(actions, ContinuousActions | BinaryActions)):
            acts.setdefault(deed(action, actions), []).extend(names[code] for code in codes)
    first = {command: key for key, command in reversed(commands.items())}
    rows = [(keys, text) for text, keys in acts.items() if keys]
    if mouse_part(actions):
        rows.append((["mouse"], "turn the view"))
    texts = commands_of(actions).items()
    return rows + [([first[command]], text) for command, (_, text) in texts if command in first]


def deed(action: Any, actions: ActionSpec) -> str:
    """What an action does, in words."""
    if is_game(actions):
        return label(action, actions)
    if isinstance(actions, ContinuousActions):
        return amounts(action, actions)
    if isinstance(actions, BinaryActions):
        return ", ".join(name for name, down in zip(actions.names, action, strict=False) if down) or "none"
    return actions.names[action] if isinstance(actions, DiscreteActions) and actions.names else f"action {action}"


def amounts(action: Any, actions: ContinuousActions) -> str:
    """A vector in words, without its zeros: "steer -1, gas 0.5"."""
    names = actions.names or [f"[{i}]" for i in range(actions.width)]
    moved = (f"{name} {value:+g}" for name, value in zip(names, np.asarray(action).tolist(), strict=True) if value)
    return ", ".join(moved) or "none"


def mouse_part(actions: ActionSpec) -> bool:
    """Whether moving the mouse is an action."""
    return isinstance(actions, DictActions) and is_game(actions) and "mouse" in dict(actions.parts)
