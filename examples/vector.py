"""Worlds side by side: one engine, one batched call a step, through Gymnasium's vector API."""

import gymnasium as gym
import numpy as np
import tyro

import inferix_env  # noqa: F401  registers the ids


def main(world: str = "doom-take-cover", num_envs: int = 2, steps: int = 25) -> np.ndarray:
    """Step worlds with random actions; returns the sum of rewards of each, [num_envs].

    Args:
        world: a world's name or folder.
        num_envs: how many worlds.
        steps: how many. A world that ended begins again by itself, in the step after.
    """
    envs = gym.make_vec("inferix_env/World-v0", num_envs=num_envs, world=world)
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)  # world i takes the seed 0 + i
    totals = np.zeros(envs.num_envs)
    for _ in range(steps):
        observations, rewards, terminations, _, infos = envs.step(envs.action_space.sample())
        totals += rewards
        print(observations.shape, infos["frames"].shape, rewards.round(3), terminations)
    envs.close()
    return totals


if __name__ == "__main__":
    tyro.cli(main)
