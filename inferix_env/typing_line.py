"""What a person types and where the mouse has gone, until a step takes it. Knows events by plain names only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inferix_env.game_keys import TURN

if TYPE_CHECKING:
    from inferix_env.viewer import Event

# Pixels a step by which the mouse turns the view as far as a held key does.
REACH = 60.0


class PromptLine:
    """A line in which a prompt is typed: open or not, and what was sent and no step has taken.

    Args:
        longest: how many characters it takes.
    """

    def __init__(self, longest: int):
        self.longest = longest
        self.text: str | None = None
        self.sent = ""

    def open(self) -> None:
        self.text = self.text or ""

    def handle(self, event: Event) -> bool:
        """Take an event while the line is open; whether it still is."""
        assert self.text is not None
        if event.kind == "text":
            self.text = (self.text + event.name)[: self.longest]
        elif event.kind == "press" and event.name == "backspace":
            self.text = self.text[:-1]
        elif event.kind == "press" and event.name in ("return", "enter", "escape"):
            if event.name != "escape":
                self.sent = self.text.strip() or self.sent
            self.text = None
        return self.text is not None

    def take(self) -> str:
        """The prompt for the next step, "" for none; it is used up."""
        sent, self.sent = self.sent, ""
        return sent


class MouseLook:
    """How far the mouse has moved since the last step, as the action of a Matrix-Game."""

    def __init__(self) -> None:
        self.moved = np.zeros(2)

    def add(self, right: float, down: float) -> None:
        """Pixels."""
        self.moved += (right, down)

    def any(self) -> bool:
        return bool(self.moved.any())

    def take(self) -> np.ndarray:
        """(pitch, yaw) float32, up and right positive, as far as a held key turns at most; it is used up."""
        right, down = self.moved
        self.moved = np.zeros(2)
        return np.clip(np.array([-down, right]) * TURN / REACH, -TURN, TURN).astype(np.float32)


def turned(action: Any, look: MouseLook) -> Any:
    """A Matrix-Game's action with the mouse's motion, unless keys turn the view already."""
    motion = look.take()
    return action if np.any(action["mouse"]) else {**action, "mouse": motion}
