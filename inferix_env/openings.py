"""Where an episode begins: the world's start, what is seen of it, and the prompt that holds. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine import Start


@dataclass(frozen=True)
class Opening:
    """Where an episode begins.

    Attributes:
        start: of the world.
        frames: what is seen first, uint8 [T, H, W, 3]; None where the first block has to be dreamed for that.
        prompt: of a text world.
    """

    start: Start
    frames: np.ndarray | None
    prompt: str | None = None


class Openings(Protocol):
    """What makes openings of reset's options, drawing what they leave open."""

    def opening(self, options: Mapping[str, Any], rng: np.random.Generator) -> Opening:
        """Raises ValueError for options that this world does not take."""
        ...
