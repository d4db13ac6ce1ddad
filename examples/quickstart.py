"""A world in ten lines: make it, step it, see what a step gives."""

import gymnasium as gym
import tyro

import inferix_env  # noqa: F401  registers the ids


def main(world: str = "", steps: int = 50) -> None:
    """Play random actions in a world.

    Args:
        world: a world's name or folder; Take Cover by default.
        steps: how many.
    """
    env = gym.make("inferix_env/World-v0", world=world) if world else gym.make("inferix_env/DoomTakeCover-v0")
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        print(observation.shape, info["frames"].shape, f"{reward:.3f}", terminated, info["variables"])
        if terminated or truncated:
            observation, info = env.reset()
    env.close()


if __name__ == "__main__":
    tyro.cli(main)
