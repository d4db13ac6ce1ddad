"""Stable-Baselines3's PPO in the dream, as it is: single envs of one process share an engine; nothing is adapted."""

from pathlib import Path

import numpy as np
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import inferix_env  # noqa: F401  registers the ids


def main(
    env: str = "inferix_env/DoomTakeCover-v0",
    world: str | None = None,
    num_envs: int = 4,
    steps: int = 768,
    rollout: int = 64,
    seed: int = 0,
    out: Path = Path("out/sb3.zip"),
) -> PPO:
    """Learn for about a minute on a laptop's CPU; an agent that plays well takes hundreds of times as many steps.

    Args:
        env: a world's id.
        world: a world's name or folder, for the id inferix_env/World-v0.
        num_envs: how many worlds, stepped in turn.
        steps: of all worlds together.
        rollout: steps of each world between two updates.
        seed: of the worlds and the learner.
        out: where the agent goes.
    """
    envs = make_vec_env(env, num_envs, seed, env_kwargs={"world": world} if world else None)
    learner = PPO(
        "CnnPolicy",
        envs,
        n_steps=rollout,
        batch_size=min(64, num_envs * rollout),
        n_epochs=2,
        ent_coef=0.01,
        seed=seed,
        verbose=1,
    )
    learner.learn(steps, progress_bar=False)
    episodes = [episode["r"] for episode in learner.ep_info_buffer or []]
    out.parent.mkdir(parents=True, exist_ok=True)
    learner.save(out)
    envs.close()
    mean = f", mean return {np.mean(episodes):.1f}" if episodes else ""
    print(f"{out}: {learner.num_timesteps} steps, {len(episodes)} episodes{mean}")
    return learner


if __name__ == "__main__":
    tyro.cli(main)
