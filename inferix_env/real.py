"""The real env behind a world, as Gymnasium has it: the world's observations and actions, its size and its rate.

What the world was learned from stands in its card. Knows Gymnasium; knows nothing of dreams.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from engine import PixelEnv, WorldSpec, read_card
from inferix_env import worlds
from inferix_env.actions import space_of


class RealEnv(gym.Env):
    """A real env at a world's frame size and frame skip.

    Observation: uint8 [H, W, 3]; where an end shows no picture, the last one again.
    Info: `variables`, the env's named numbers, such as health, as far as the world has them.
    Reward: the sum over the steps that an action is held.

    Args:
        card: of the world; its "data" say the env and the frame skip.
        max_episode_steps: the horizon, reported as truncation, or None.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: the card names no env, or the env is not installed, or has other actions.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 9}

    def __init__(
        self,
        spec: WorldSpec,
        card: dict[str, Any],
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ):
        data = card.get("data", {})
        if "env" not in data:
            raise ValueError(f"the card of {spec.name} names no env that it was learned from")
        if data["env"].startswith("Vizdoom") and importlib.util.find_spec("vizdoom") is None:
            raise ValueError(f"the env {data['env']} needs the package vizdoom: pip install 'inferix-env[evaluate]'")
        skip, settle = int(data.get("frame_skip", 1)), int(data.get("settle", 0))
        self.game = PixelEnv(data["env"], spec.frame, skip, data.get("kwargs"), settle)
        self.world_spec, self.card = spec, card  # whose names of actions and keys scripts may use
        self.action_space = space_of(spec.actions)
        if not same_actions(self.action_space, self.game.action_space):
            raise ValueError(f"{data['env']} has the actions {self.game.action_space}: {spec.name} has {spec.actions}")
        self.frame_skip = skip
        names = list(self.game.variable_names)
        self.columns = {v.name: names.index(v.name) for v in spec.variables if v.name in names}
        self.observation_space = gym.spaces.Box(0, 255, (*spec.frame, 3), np.uint8)
        self.metadata = {**type(self).metadata, "render_fps": max(1, round(spec.fps))}
        self.max_episode_steps, self.render_mode = max_episode_steps, render_mode
        self.frame = np.zeros((*spec.frame, 3), np.uint8)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        seen = self.game.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        self.frame, self.steps = seen.frame, 0
        return self.frame.copy(), self._info(seen.variables)

    def step(self, action: Any):
        seen = self.game.step(action)
        self.steps += 1
        if seen.valid:
            self.frame = seen.frame
        truncated = seen.truncated or self.steps == self.max_episode_steps
        return self.frame.copy(), seen.reward, seen.terminated, truncated, self._info(seen.variables)

    def render(self) -> np.ndarray | None:
        return self.frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.game.close()

    def _info(self, variables: np.ndarray) -> dict[str, Any]:
        return {"variables": {name: float(variables[i]) for name, i in self.columns.items()}}


def same_actions(ours: gym.Space, theirs: gym.Space) -> bool:
    """Whether two action spaces take the same actions."""
    if isinstance(ours, gym.spaces.Box) and isinstance(theirs, gym.spaces.Box):
        return ours.shape == theirs.shape and np.allclose(ours.low, theirs.low) and np.allclose(ours.high, theirs.high)
    return ours == theirs


def real_env(world: str | Path = "doom-take-cover", **options: Any) -> RealEnv:
    """The real env behind a world: a shipped world's name, or a folder.

    Args:
        options: of `RealEnv`.

    Raises:
        ValueError: no such world, or its env is not there.
    """
    card = read_card(worlds.find(world))
    return RealEnv(WorldSpec.from_dict(card["spec"]), card, **options)
