"""Continue from footage of your own: real frames and the actions between them go in, a clip goes on from there."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro

from inferix_env.env import WorldSimEnv
from inferix_env.record import Recorder


def film(env: gym.Env, steps: int) -> dict[str, np.ndarray]:
    """Stand-in for a camera: frames uint8 [K, H, W, 3] of the world's size, and K - 1 actions between them."""
    env.action_space.seed(0)
    env.reset(seed=0)
    frames, actions = [], []
    for _ in range(steps):
        action = env.action_space.sample()
        _, _, terminated, truncated, info = env.step(action)
        frames += list(info["frames"])
        actions += [action] * len(info["frames"])
        if terminated or truncated:
            break
    return {"frames": np.stack(frames), "actions": np.array(actions[1:])}


def main(
    world: str = "doom-take-cover",
    footage: Path | None = None,
    out: Path = Path("out/own_footage.mp4"),
    steps: int = 40,
):
    """Write a clip: the footage, then what the world dreams after it.

    Args:
        world: a world's name or folder.
        footage: an npz with `frames` and `actions`; by default the world films itself.
        out: the clip.
        steps: how many to dream.
    """
    env = WorldSimEnv(world=world)
    given = dict(np.load(footage)) if footage else film(env, steps=12)
    env.action_space.seed(1)
    env.reset(seed=1, options={"frames": given["frames"], "actions": given["actions"]})
    out.parent.mkdir(parents=True, exist_ok=True)
    with Recorder(out, given["frames"].shape[1:3], env.world_spec.fps) as recorder:
        recorder.add(given["frames"])
        for _ in range(steps):
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            recorder.add(info["frames"])
            if terminated or truncated:
                break
    env.close()
    print(f"{out}: {len(given['frames'])} frames of footage, {recorder.num_frames - len(given['frames'])} dreamt")


if __name__ == "__main__":
    tyro.cli(main)
