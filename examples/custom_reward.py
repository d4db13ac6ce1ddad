"""A reward and an end of your own: any function of a step's frames, action and info, in place of the learned head."""

from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from inferix_env.env import WorldSimEnv


def calm(frames: np.ndarray, action: Any, info: dict[str, Any]) -> tuple[float, bool]:
    """One for a step, less how red the picture is (fire is), less how likely the end was; all red is the end.

    `frames` are all frames of the step, uint8 [T, H, W, 3].
    """
    red, green, blue = frames.reshape(-1, 3).astype(np.float32).mean(axis=0) / 255
    fire = float(max(red - (green + blue) / 2, 0.0))
    return 1.0 - fire - info["end_probability"], fire > 0.5


def main(world: str = "doom-take-cover", steps: int = 40) -> list[float]:
    """Hold each action of a world and compare what the reward function says; returns the mean reward of each.

    Args:
        world: a world's name or folder, with discrete actions.
        steps: how many to hold an action, at most.
    """
    env = WorldSimEnv(world=world, reward_fn=calm)
    assert isinstance(env.action_space, gym.spaces.Discrete)
    means = []
    for action in range(int(env.action_space.n)):
        env.reset(seed=0)
        rewards: list[float] = []
        while len(rewards) < steps:
            _, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
            if terminated or truncated:
                break
        means.append(float(np.mean(rewards)))
        print(f"action {action}: {len(rewards)} steps, mean reward {means[-1]:.3f}")
    env.close()
    return means


if __name__ == "__main__":
    tyro.cli(main)
