"""EpisodeState: where the episode of one world stands. A single env has one of it, a vector env N.

Knows the engine's worlds and blocks as values; runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from engine import Block, World, WorldSpec

# uint8 [T, H, W, 3], as NumPy or on the engine's device.
Frames = np.ndarray | Tensor


@dataclass
class EpisodeState:
    """One episode so far.

    Attributes:
        world: what is simulated.
        frames: of the last step, uint8 [T, H, W, 3]; after a reset the start's last frame, T times.
        horizon: the step that truncates the episode; None for no end but the world's.
        steps: how many there have been.
        end_probability: of the last step, asked before it was dreamed.
        over: terminated or truncated.
    """

    world: World
    frames: Frames
    horizon: int | None
    steps: int = 0
    end_probability: float = 0.0
    over: bool = False

    def advance(self, block: Block, frames: Frames) -> tuple[bool, bool]:
        """Count a step that made `block`, whose frames come as the env shows them: terminated, truncated."""
        self.frames, self.end_probability = frames, block.end_probability
        self.steps += 1
        truncated = self.horizon is not None and self.steps >= self.horizon
        self.over = block.terminated or truncated
        return block.terminated, truncated

    def observation(self, obs: str) -> Frames:
        """The last frame (obs "frame") or all of them ("block"); not a copy."""
        return self.frames[-1] if obs == "frame" else self.frames

    def info(self, spec: WorldSpec) -> dict[str, Any]:
        """What Gymnasium calls info: `frames`, `end_probability` and `variables`."""
        variables = {v.name: float(x) for v, x in zip(spec.variables, self.world.variables, strict=True)}
        return {"frames": self.frames, "end_probability": self.end_probability, "variables": variables}
