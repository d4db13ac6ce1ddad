"""inferix_env: Gymnasium environments whose world is a neural network.

Importing this registers the shipped worlds' ids; torch is imported when an env is made.

    import gymnasium as gym, inferix_env
    env = gym.make("inferix_env/DoomTakeCover-v0")
    envs = gym.make_vec("inferix_env/DoomTakeCover-v0", num_envs=8)  # one engine, one batched call

    inferix_env.register_world("me/Pendulum-v0", "worlds/pendulum")  # a world folder of your own
"""

import gymnasium

from inferix_env.registering import register_world

__all__ = ["register_world"]
__version__ = "0.1.0"

gymnasium.register(
    id="inferix_env/DoomTakeCover-v0",
    entry_point="inferix_env.env:WorldSimEnv",
    vector_entry_point="inferix_env.vector:WorldSimVectorEnv",
    kwargs={"world": "doom-take-cover"},
    max_episode_steps=525,  # 2,100 game tics, the horizon of Ha & Schmidhuber (2018)
)
gymnasium.register(
    id="inferix_env/CarRacing-v0",
    entry_point="inferix_env.env:WorldSimEnv",
    vector_entry_point="inferix_env.vector:WorldSimVectorEnv",
    kwargs={"world": "car-racing"},
    max_episode_steps=250,  # 1,000 game frames, as in Gymnasium's CarRacing-v3
)
# Any world folder: gym.make("inferix_env/World-v0", world="path/to/world").
gymnasium.register(
    id="inferix_env/World-v0",
    entry_point="inferix_env.env:WorldSimEnv",
    vector_entry_point="inferix_env.vector:WorldSimVectorEnv",
)
