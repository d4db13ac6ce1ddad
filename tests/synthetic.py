"""A small Gymnasium env with a picture, a named variable and an end, for end-to-end tests.

A square moves left or right on a striped floor; energy falls by one each step it moves, and the episode ends at zero.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

SIZE = 32
ENERGY = 12.0


class MovingSquare(gym.Env):
    """Discrete(3): none, left, right. Dict observation: `screen` uint8 [32, 32, 3] and `energy` float32 [1]."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.action_space = gym.spaces.Discrete(3)
        self.observation_space = gym.spaces.Dict(
            {
                "screen": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                "energy": gym.spaces.Box(0, ENERGY, (1,), np.float32),
            }
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.energy = int(self.np_random.integers(4, SIZE - 8)), ENERGY
        return self._observe(), {}

    def step(self, action):
        self.x = int(np.clip(self.x + (0, -2, 2)[action], 0, SIZE - 6))
        self.energy -= float(action != 0)
        ended = self.energy <= 0
        return self._observe(blank=ended), 1.0, ended, False, {}

    def render(self):
        return self._observe()["screen"]

    def _observe(self, blank: bool = False):
        screen = np.zeros((SIZE, SIZE, 3), np.uint8)
        if not blank:  # as some games do, an end shows no picture
            screen[::4] = 40
            screen[12:18, self.x : self.x + 6] = (250, 200, 60)
        return {"screen": screen, "energy": np.array([self.energy], np.float32)}


gym.register("tests/MovingSquare-v0", entry_point="tests.synthetic:MovingSquare", max_episode_steps=40)


class Slider(gym.Env):
    """Box [-1, 1] x [0, 1]: where a bar goes, and how bright it gets. The picture is the observation.

    It fades in over the first four frames, and every picture is drawn in the same array, as some games do.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.action_space = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 1]))
        self.observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.screen = np.zeros((SIZE, SIZE, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.light, self.age = float(self.np_random.uniform(8, 20)), 0.0, 0
        return self.render(), {}

    def step(self, action):
        self.x, self.light = float(np.clip(self.x + 2 * action[0], 0, SIZE - 4)), float(action[1])
        self.age += 1
        return self.render(), self.light, False, False, {}

    def render(self):
        self.screen[:] = 60 * min(self.age, 4) // 4
        self.screen[:, round(self.x) : round(self.x) + 4] = 100 + round(155 * self.light)
        return self.screen


gym.register("tests/Slider-v0", entry_point="tests.synthetic:Slider", max_episode_steps=30)
