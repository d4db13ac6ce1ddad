"""What keys mean: the world's own become actions, the others are commands to the session.

Knows codes and names of keys; knows no window and no pygame.
"""

from __future__ import annotations

import itertools
from typing import Any

from engine import ActionSpec, DiscreteActions

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


def free_commands(taken: set[str]) -> dict[str, str]:
    """Key -> what it does in a session, for the keys that the world does not take."""
    return {key: command for command, (keys, _) in COMMANDS.items() for key in keys if key not in taken}


def rows_of_help(
    keymap: dict[tuple[int, ...], Any], names: dict[int, str], actions: ActionSpec, commands: dict[str, str]
) -> list[tuple[list[str], str]]:
    """(names of keys, what they do): the world's actions, then the session's commands."""
    acts: dict[str, list[str]] = {}
    for codes, action in keymap.items():
        label = actions.names[action] if isinstance(actions, DiscreteActions) and actions.names else f"action {action}"
        acts.setdefault(label, []).extend(names[code] for code in codes)
    first = {command: key for key, command in reversed(commands.items())}
    rows = [(keys, label) for label, keys in acts.items() if keys]
    return rows + [([first[command]], text) for command, (_, text) in COMMANDS.items() if command in first]
