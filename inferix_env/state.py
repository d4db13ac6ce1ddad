"""EpisodeState: where the episode of one world stands. A single env has one of it, a vector env N.

Knows the engine's worlds and blocks as values; runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import Block, World, WorldSpec

# uint8 [T, H, W, 3], as NumPy or on the engine's device.
Frames = np.ndarray | Tensor


@dataclass
class EpisodeState:
    """One episode so far.

    Attributes:
        world: what is simulated.
        frames: of the last step, uint8 [T, H, W, 3]; after a reset those it begins with.
        horizon: the step that truncates the episode; None for no end but the world's.
        steps: how many there have been.
        end_probability: of the last step, asked before it was dreamed.
        over: terminated or truncated.
        prompt: the one that holds; None where the world reads none.
        uncertainty: what a guard read off the last step, by signal; None where nothing is read.
        expected: what the world's named variables were expected to be after the last step; as they are, before any.
        block: the world's count of blocks when all this was noted.
    """

    world: World
    frames: Frames
    horizon: int | None
    steps: int = 0
    end_probability: float = 0.0
    over: bool = False
    prompt: str | None = None
    uncertainty: dict[str, float] | None = None
    expected: list[float] = field(default_factory=list)
    block: int = field(init=False)

    def __post_init__(self) -> None:
        self.block = self.world.block
        self.expected = self.expected or self.world.variables.tolist()

    @property
    def intact(self) -> bool:
        """Whether the world is there, and where this says: a fault may close it, or come between a step and what a
        guard reads off it."""
        return self.world.open and self.world.block == self.block

    def advance(
        self,
        block: Block,
        frames: Frames,
        prompt: str | None,
        uncertainty: dict[str, float] | None = None,
        distrusted: bool = False,
    ) -> tuple[bool, bool]:
        """Count a step that made `block`, whose frames come as the env shows them, under a prompt: terminated,
        truncated. A step that a guard distrusts is the last one."""
        self.frames, self.end_probability, self.prompt = frames, block.end_probability, prompt
        self.uncertainty, self.expected = uncertainty, block.expected.tolist()
        self.steps, self.block = self.steps + 1, self.world.block
        truncated = distrusted or (self.horizon is not None and self.steps >= self.horizon)
        self.over = block.terminated or truncated
        return block.terminated, truncated

    def observation(self, obs: str, count: int) -> Frames:
        """The last frame (obs "frame"), or `count` of them ("block", see `filled`); maybe not a copy."""
        return self.frames[-1] if obs == "frame" else filled(self.frames, count)

    def info(self, spec: WorldSpec) -> dict[str, Any]:
        """What Gymnasium calls info: `frames`, `end_probability`, `variables`, `expected_variables`, a text world's
        `prompt`, and a guarded world's `uncertainty`."""
        names = [v.name for v in spec.variables]
        info: dict[str, Any] = {
            "frames": self.frames,
            "end_probability": self.end_probability,
            "variables": dict(zip(names, self.world.variables.tolist(), strict=True)),
            "expected_variables": dict(zip(names, self.expected, strict=True)),
        }
        info |= {} if self.prompt is None else {"prompt": self.prompt}
        return info if self.uncertainty is None else {**info, "uncertainty": dict(self.uncertainty)}


def filled(frames: Frames, count: int) -> Frames:
    """`count` frames: those given, [T, H, W, 3], after as many of the first of them as are missing."""
    missing = count - len(frames)
    if not missing:
        return frames
    if isinstance(frames, Tensor):
        return torch.cat([frames[:1].expand(missing, *frames.shape[1:]), frames])
    return np.concatenate([frames[:1].repeat(missing, axis=0), frames])
