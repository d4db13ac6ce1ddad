"""Settings: the arguments that a single env and a vector env of worlds have in common, checked once.

Knows worlds as folders and the engine; knows no episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from engine import WorldSpec
from inferix_env import worlds
from inferix_env.engines import Seats
from inferix_env.rewards import RewardFn

DTYPES = ("float32", "bfloat16")
# What Gymnasium takes for "no horizon" beside None.
ENDLESS = -1


@dataclass(frozen=True)
class Settings:
    """What to simulate and what to show of it; see `WorldSimEnv` for each.

    Raises:
        ValueError: a value that is none of those expected.
    """

    world: str | Path
    device: str
    dtype: str | None
    num_steps: int | None
    window: int | None
    obs: str
    max_episode_steps: int | None
    reward_fn: RewardFn | None
    deterministic: bool
    kv_dtype: str | None

    def __post_init__(self) -> None:
        check_choice("obs", self.obs, ("frame", "block"))
        check_choice("dtype", self.dtype, (None, *DTYPES))
        if self.window is not None and self.window < 1:
            raise ValueError(f"window {self.window}: expected at least 1 latent frame, or None for the world's own")
        if self.horizon is not None and self.horizon < 2:
            raise ValueError(f"max_episode_steps {self.horizon}: expected at least 2, or None")

    @property
    def horizon(self) -> int | None:
        """Steps after which an episode is truncated."""
        return None if self.max_episode_steps == ENDLESS else self.max_episode_steps

    def claim(self, folder: Path, num_worlds: int) -> Seats:
        """Seats for so many worlds at the engine of these settings.

        Raises:
            ValueError: the device, the precision or the sizes are none that this machine or the engine has.
        """
        model = worlds.model(folder, self.device, self.dtype)
        spec = model.spec
        return Seats(
            model,
            num_worlds,
            num_steps=spec.num_steps if self.num_steps is None else self.num_steps,
            policy=spec.kv if self.window is None else replace(spec.kv, window=self.window),
            deterministic=self.deterministic,
            kv_dtype=self.kv_dtype,
        )

    def observation_space(self, spec: WorldSpec, frames_per_step: int) -> gym.spaces.Box:
        """uint8 [H, W, 3], or all T frames of a step: [T, H, W, 3]."""
        lead = () if self.obs == "frame" else (frames_per_step,)
        return gym.spaces.Box(0, 255, (*lead, *spec.frame, 3), np.uint8)


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected one of {list(choices)}")
