"""Two worlds side by side through Gymnasium's own vector API; their weights are loaded once."""

import gymnasium as gym
import numpy as np
import tyro

import inferix_env  # noqa: F401  registers the ids


def main(world: str = "doom-take-cover", steps: int = 25) -> np.ndarray:
    """Step two worlds with random actions; returns the sum of rewards of each, [2].

    Args:
        world: a world's name or folder.
        steps: how many. A world that ended begins again by itself.
    """
    envs = gym.make_vec("inferix_env/World-v0", num_envs=2, vectorization_mode="sync", world=world)
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)  # the second world takes the next seed
    totals = np.zeros(envs.num_envs)
    for _ in range(steps):
        observations, rewards, terminations, _, infos = envs.step(envs.action_space.sample())
        totals += rewards
        print(observations.shape, infos["frames"].shape, rewards.round(3), terminations)
    envs.close()
    return totals


if __name__ == "__main__":
    tyro.cli(main)
