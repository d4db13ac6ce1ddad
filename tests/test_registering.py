"""A world folder under an id of one's own."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import inferix_env
from inferix_env.env import WorldSimEnv


@pytest.fixture
def registry():
    before = dict(gym.registry)
    yield gym.registry
    gym.registry.clear()
    gym.registry.update(before)


def test_an_id_of_ones_own_makes_the_world(registry, endless, monkeypatch):
    monkeypatch.chdir(endless.parent)
    inferix_env.register_world("me/Tiny-v0", endless.name, max_episode_steps=3, num_steps=1)
    monkeypatch.chdir("/")  # the id keeps the whole path
    env, plain = gym.make("me/Tiny-v0"), WorldSimEnv(endless, num_steps=1)
    assert env.unwrapped.folder == endless
    assert np.array_equal(env.reset(seed=4)[0], plain.reset(seed=4)[0])
    steps = [env.step(1) for _ in range(3)]
    assert np.array_equal(steps[0][0], plain.step(1)[0])
    assert [truncated for *_, truncated, _ in steps] == [False, False, True]
    envs = gym.make_vec("me/Tiny-v0", num_envs=2)
    assert envs.reset(seed=0)[0].shape == (2, 32, 32, 3)
    envs.close()


def test_registering_again_replaces(registry, endless, tiny, recwarn):
    inferix_env.register_world("me/Tiny-v0", tiny)
    inferix_env.register_world("me/Tiny-v0", endless)
    assert gym.make("me/Tiny-v0").unwrapped.folder == endless
    assert not recwarn.list


@pytest.mark.parametrize(
    ("env_id", "world", "problem"),
    [
        ("me/Tiny-v0", "no/such/world", "no world 'no/such/world'"),
        ("me/my world", None, "expected one such as 'me/Pendulum-v0'"),
        ("CartPole-v1", None, "'CartPole-v1' is taken: choose one such as 'me/CartPole-v1'"),
        ("inferix_env/Mine-v0", None, "is taken: choose one such as 'me/Mine-v0'"),
    ],
)
def test_what_cannot_be_is_named(registry, endless, env_id, world, problem):
    before = dict(registry)
    with pytest.raises(ValueError, match=problem):
        inferix_env.register_world(env_id, world or endless)
    assert dict(registry) == before


def test_registering_takes_no_torch(endless):
    register = f"inferix_env.register_world('me/A-v0', {str(endless)!r})"
    code = f"import sys, inferix_env; {register}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
