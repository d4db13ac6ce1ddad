"""A Gymnasium env seen as a world's frames: image observations at a fixed size, actions held for a frame skip.

Knows Gymnasium and Pillow; does not know the engine, shards or policies. Used to collect data and, by whoever
compares a dream with reality, to play the real env at the world's own size and rate.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from engine.training.behaviour import neutral_action

# Packages whose env ids exist only after an import of theirs.
REGISTERED_BY = {"Vizdoom": "vizdoom.gymnasium_wrapper", "ALE/": "ale_py", "MiniGrid": "minigrid"}


@dataclass(frozen=True)
class Seen:
    """What one step showed. `valid` is False where the env returned a picture of a single colour at an end."""

    frame: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    variables: np.ndarray
    valid: bool


class PixelEnv:
    """An env whose observation is one uint8 frame [H, W, 3].

    Args:
        env_id: a Gymnasium id, or "module:id".
        size: (H, W) of the frames; the env's picture is resized with a box filter.
        frame_skip: steps an action is held. The frame after the last of them is kept. Envs that take a
            `frame_skip` argument themselves are given it; for the others the step is repeated here.
        kwargs: further arguments of `gym.make`.
        settle: steps of the neutral action after each reset, before the first frame that is shown: past a fade or a
            zoom at the start. Their rewards count nowhere.

    Raises:
        ValueError: the id is unknown, the env shows no image, or it needs a package that is not installed.
    """

    def __init__(
        self, env_id: str, size: tuple[int, int], frame_skip: int = 1, kwargs: dict | None = None, settle: int = 0
    ):
        self.size, self.env_id, self.settle, kwargs = size, env_id, settle, dict(kwargs or {})
        spec = find_spec(env_id)
        native = "frame_skip" in spec.kwargs
        if native:
            kwargs["frame_skip"] = frame_skip
        self.repeats = 1 if native else frame_skip
        self.env = make(env_id, **kwargs)
        self.image_key = find_image(self.env.observation_space)
        if self.image_key is None:
            self.env.close()
            self.env = make(env_id, render_mode="rgb_array", **kwargs)
        self.action_space = self.env.action_space
        self.variable_names = self._variable_names()
        self.action_names = button_names(self.env.unwrapped)

    def reset(self, seed: int) -> Seen:
        observation, _ = self.env.reset(seed=seed)
        for _ in range(self.settle * self.repeats):
            observation, *_ = self.env.step(neutral_action(self.action_space))
        return Seen(self._frame(observation), 0.0, False, False, self._variables(observation), True)

    def step(self, action: Any) -> Seen:
        total = 0.0
        for _ in range(self.repeats):
            observation, reward, terminated, truncated, _ = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        frame = self._frame(observation)
        valid = not ((terminated or truncated) and frame.min() == frame.max())
        return Seen(frame, total, bool(terminated), bool(truncated), self._variables(observation), valid)

    def close(self) -> None:
        self.env.close()

    def _frame(self, observation: Any) -> np.ndarray:
        if self.image_key is None:
            image: Any = self.env.render()
        else:
            image = observation[self.image_key] if self.image_key else observation
        return resize(np.asarray(image), self.size)

    def _variables(self, observation: Any) -> np.ndarray:
        if not self.variable_names:
            return np.zeros(0, np.float32)
        parts = [np.ravel(observation[key]) for key in observation if key != self.image_key]
        return np.concatenate(parts).astype(np.float32)

    def _variable_names(self) -> tuple[str, ...]:
        if not isinstance(self.env.observation_space, gym.spaces.Dict):
            return ()
        names: list[str] = []
        for key, space in self.env.observation_space.spaces.items():
            if key == self.image_key:
                continue
            count = int(np.prod(space.shape or ()))
            game = getattr(self.env.unwrapped, "game", None)
            if key == "gamevariables" and game is not None:  # ViZDoom knows what its numbers are called
                names += [v.name.lower() for v in game.get_available_game_variables()]
            else:
                names += [key] if count == 1 else [f"{key}_{i}" for i in range(count)]
        return tuple(names)


def button_names(env: Any) -> tuple[str, ...]:
    """What ViZDoom's discrete actions press, such as ("none", "move_right", "move_left"); () for other envs."""
    game, presses = getattr(env, "game", None), getattr(env, "button_map", None)
    if game is None or presses is None:
        return ()
    buttons = [button.name.lower() for button in game.get_available_buttons()]
    pressed = [[name for name, down in zip(buttons, press, strict=False) if down] for press in presses]
    return tuple("+".join(names) or "none" for names in pressed)


def make(env_id: str, **kwargs: Any) -> gym.Env:
    """`gym.make` without its checker, which warns of what is no matter here (pictures drawn in one array).

    Raises:
        ValueError: the env needs a package that is not installed.
    """
    try:
        return gym.make(env_id, disable_env_checker=True, **kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(f"{env_id} needs a package that is not installed: {error}") from None


def find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """The spec of an id, after importing the package that registers it."""
    for prefix, module in REGISTERED_BY.items():
        if env_id.startswith(prefix):
            try:
                importlib.import_module(module)
            except ImportError:
                raise ValueError(f"{env_id} needs the package {module.split('.')[0]}: pip install it first") from None
    if ":" in env_id:
        module, env_id = env_id.split(":", 1)
        importlib.import_module(module)
    try:
        return gym.spec(env_id)
    except gym.error.Error as error:
        raise ValueError(f"no Gymnasium env {env_id!r}: {error}") from None


def find_image(space: gym.Space) -> str | None:
    """The key of the image in a Dict space, "" where the observation itself is the image, None without one."""
    if isinstance(space, gym.spaces.Dict):
        return next((key for key, part in space.spaces.items() if is_image(part)), None)
    return "" if is_image(space) else None


def is_image(space: gym.Space) -> bool:
    return (
        isinstance(space, gym.spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[-1] in (1, 3)
    )


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [h, w, 3 or 1] to [H, W, 3] by area averaging."""
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    if image.shape[:2] == size:
        return np.array(image)  # a copy: an env may draw its next picture in the same array
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))
