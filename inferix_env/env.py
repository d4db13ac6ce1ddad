"""WorldSimEnv: a Gymnasium environment whose world is a neural network.

`step` is one block: the action is encoded, the engine denoises the next block from it and from the KV-cached
history, and its last frame is the observation. Knows Gymnasium and, of the engine, what `engine` exports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from engine import Condition, Engine, KVPolicy, World, read_card
from inferix_env import worlds
from inferix_env.actions import key_map, space_of
from inferix_env.rewards import RewardFn, checked
from inferix_env.starts import make_start

RENDER_MODES = ["human", "rgb_array", "rgb_array_list"]
DTYPES = ("float32", "bfloat16")


class WorldSimEnv(gym.Env):
    """One world, one step a block.

    Observation: the block's last frame, uint8 [H, W, 3], or with `obs="block"` all T of them, [T, H, W, 3].
    Info: `frames` (all frames of the step), `end_probability` (that it ended, asked before it was dreamed) and
    `variables` (the world's named numbers, such as health).

    Args:
        world: a shipped world's name, or a folder.
        device: where the engine runs.
        dtype: "float32", "bfloat16", or None for what the device computes fast.
        num_steps: denoising passes of a block; the world's own by default.
        window: latent frames of history that a block sees; the world's own by default.
        obs: "frame" or "block".
        render_mode: "human" (a window; needs the extra `play`), "rgb_array", "rgb_array_list" (all frames since
            the last render) or None.
        max_episode_steps: the horizon, reported as truncation; None for no end but the world's.
        reward_fn: (frames uint8 [T, H, W, 3], info) -> reward, in place of the learned head.

    Raises:
        ValueError: an argument names nothing this machine or package has.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 9}

    def __init__(
        self,
        world: str | Path = "doom-take-cover",
        device: str = "cpu",
        dtype: str | None = None,
        num_steps: int | None = None,
        window: int | None = None,
        obs: str = "frame",
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        reward_fn: RewardFn | None = None,
    ):
        check_choice("obs", obs, ("frame", "block"))
        check_choice("dtype", dtype, (None, *DTYPES))
        check_choice("render_mode", render_mode, (None, *RENDER_MODES))
        if max_episode_steps is not None and max_episode_steps < 2:
            raise ValueError(f"max_episode_steps {max_episode_steps}: expected at least 2, or None")
        self.folder = worlds.find(world)
        self.card = read_card(self.folder)
        model = worlds.model(self.folder, device, dtype)
        self.world_spec = model.spec
        policy = self.world_spec.kv if window is None else KVPolicy(window, self.world_spec.kv.sink)
        self.engine = Engine(model, num_steps, policy)
        self.obs, self.render_mode, self.reward_fn = obs, render_mode, reward_fn
        self.max_episode_steps = max_episode_steps
        self.metadata = {**type(self).metadata, "render_fps": max(1, round(self.world_spec.fps))}
        self.action_space = space_of(self.world_spec.actions)
        height, width = self.world_spec.frame
        self.frames_per_step = self.world_spec.block * model.codec.frames_per_latent
        lead = () if obs == "frame" else (self.frames_per_step,)
        self.observation_space = gym.spaces.Box(0, 255, (*lead, height, width, 3), np.uint8)
        self.world: World | None = None
        self.frames = np.zeros((0, height, width, 3), np.uint8)
        self.unrendered: list[np.ndarray] = []
        self.steps = 0
        self.over = True
        self.window = open_window(self) if render_mode == "human" else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin an episode: see `starts.make_start` for the options."""
        super().reset(seed=seed)
        start = make_start(options or {}, self.folder, self.world_spec, self.np_random)
        seed_of_world = int(self.np_random.integers(2**63))
        if self.world is not None:
            self.engine.close(self.world)
        self.world = self.engine.open(start, seed_of_world)
        self.steps, self.over = 0, False
        self.unrendered = []
        self._show(start.frames[-1:].repeat(self.frames_per_step, axis=0))
        return self._observation(), self._info(self.frames, 0.0, self.world.variables)

    def step(self, action: Any):
        """Dream the next block. Returns observation, reward, terminated, truncated, info."""
        if self.world is None or self.over:
            raise ResetNeeded("step needs an episode that runs: call reset() first")
        encoded = self.world_spec.actions.encode(action)
        condition = Condition.of(np.tile(encoded, (self.world_spec.block, 1)))
        [block] = self.engine.step([self.world], [condition])
        self.steps += 1
        self._show(block.frames)
        info = self._info(block.frames, block.end_probability, block.variables)
        reward = checked(self.reward_fn(block.frames, info), self.reward_fn) if self.reward_fn else block.reward
        truncated = self.max_episode_steps is not None and self.steps >= self.max_episode_steps
        self.over = block.terminated or truncated
        return self._observation(), reward, block.terminated, truncated, info

    def render(self):
        """The last frame, all frames since the last call, or None, by `render_mode`."""
        if self.render_mode == "rgb_array":
            return self.frames[-1].copy()
        if self.render_mode == "rgb_array_list":
            frames, self.unrendered = self.unrendered, []
            return frames
        return None

    def get_keys_to_action(self) -> dict[tuple[int, ...], Any]:
        """Held keys (pygame codes) -> action, as gymnasium.utils.play takes it."""
        return key_map(self.card, self.world_spec.actions)

    def close(self) -> None:
        if self.world is not None:
            self.engine.close(self.world)
            self.world = None
        if self.window is not None:
            self.window.close()
            self.window = None

    def _show(self, frames: np.ndarray) -> None:
        self.frames = frames
        if self.render_mode == "rgb_array_list":
            self.unrendered += list(frames)
        if self.window is not None:
            self.window.play(frames)

    def _observation(self) -> np.ndarray:
        return (self.frames[-1] if self.obs == "frame" else self.frames).copy()

    def _info(self, frames: np.ndarray, end_probability: float, variables: np.ndarray) -> dict[str, Any]:
        named = {v.name: float(x) for v, x in zip(self.world_spec.variables, variables, strict=True)}
        return {"frames": frames, "end_probability": end_probability, "variables": named}


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected one of {list(choices)}")


def open_window(env: WorldSimEnv):
    """The window of `render_mode="human"`."""
    try:
        from inferix_env.viewer import Window
    except ImportError as error:
        raise ValueError(f"render_mode 'human' needs pygame-ce: pip install 'inferix-env[play]' ({error})") from None
    height, width = env.world_spec.frame
    return Window((width, height), title=env.card.get("title", env.world_spec.name), fps=env.world_spec.fps)
