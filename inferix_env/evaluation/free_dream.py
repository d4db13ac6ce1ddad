"""A free dream: one world that nobody corrects, stepped on and on, a frame at a time; it can be put down and taken up.

Ends that the world draws are passed over and its named variables stay as they began, so that it lasts as long as is
asked. Knows the engine, players and one real frame; keeps no frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine import Condition, Engine, Start, World
from inferix_env.evaluation.players import Player


class FreeDream:
    """One world of an engine, led by a player.

    Args:
        start: a real frame, or several, with what led to them.
        seed: of the world's noise and of the player.

    Attributes:
        steps: taken so far.
    """

    def __init__(self, engine: Engine, player: Player, start: Start, seed: int):
        self.engine, self.player, self.seed = engine, player, seed
        self.world: World = engine.open(start, seed)
        self.held = self.world.variables.copy()
        self.frame, self.steps = start.frames[-1], 0
        player.reset(seed)

    def go(self, count: int) -> Iterator[np.ndarray]:
        """The next `count` frames, uint8 [H, W, 3]."""
        for _ in range(count):
            action = self.engine.spec.actions.encode(self.player(self.frame))
            self.world.variables[:] = self.held
            [block] = self.engine.step([self.world], [Condition.of(action[None])])
            self.frame, self.steps = block.frames[-1], self.steps + 1
            yield self.frame

    def save(self, folder: Path) -> None:
        """Put the world down; `load` takes it up. What the player remembers is not kept."""
        self.engine.save(self.world, folder / f"step-{self.steps}.world")

    def load(self, folder: Path, steps: int, frame: np.ndarray) -> None:
        """Take up the world that was put down after so many steps and showed `frame`.

        The player begins an episode of its own with a seed of this place, and does so too where nothing was put down
        (see `turn`): so a dream that was stopped is the one that was not.

        Raises:
            ValueError: the file is not there, is damaged, or of another model.
        """
        self.engine.close(self.world)  # an engine of one world has no room for both
        self.world = self.engine.restore(folder / f"step-{steps}.world")
        self.steps, self.frame = steps, frame

    def turn(self) -> None:
        """Let the player begin anew, with a seed of this place."""
        self.player.reset(self.seed + self.steps)

    def close(self) -> None:
        self.engine.close(self.world)
