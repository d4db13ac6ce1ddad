"""An id of one's own for a world folder, so that `gym.make` and `gym.make_vec` find it. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import get_env_id, parse_env_id

from inferix_env import worlds

ENV, VECTOR = "inferix_env.env:WorldSimEnv", "inferix_env.vector:WorldSimVectorEnv"


def register_world(env_id: str, world: str | Path, max_episode_steps: int | None = None, **options: Any) -> None:
    """Register a world under an id. Registering it again replaces it.

    Args:
        env_id: such as "me/Pendulum-v0".
        world: a world folder, or a shipped world's name; with the option `preset`, a published checkpoint.
        max_episode_steps: the horizon, reported as truncation; None for no end but the world's.
        options: further arguments of `WorldSimEnv` that the id is to have, such as num_steps.

    Raises:
        ValueError: there is no such world, or the id is none that Gymnasium takes, or another env's.
    """
    source = Path(world).expanduser() if options.get("preset") else worlds.find(world)
    try:
        made = get_env_id(*parse_env_id(env_id))
    except gym.error.Error as error:
        raise ValueError(f"env id {env_id!r}: expected one such as 'me/Pendulum-v0' ({error})") from None
    taken = gym.registry.get(made)
    if made.startswith("inferix_env/") or (taken is not None and taken.entry_point != ENV):
        raise ValueError(f"env id {env_id!r} is taken: choose one such as 'me/{made.rpartition('/')[2]}'")
    gym.registry.pop(made, None)
    kwargs = {"world": str(source), **options}
    gym.register(made, ENV, max_episode_steps=max_episode_steps, vector_entry_point=VECTOR, kwargs=kwargs)
