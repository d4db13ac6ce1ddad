"""Envs of a process share an engine: one for each setting, as many seats as worlds, none lost."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import inferix_env  # noqa: F401  (registers the ids)
from inferix_env import engines
from inferix_env.env import WorldSimEnv
from inferix_env.vector import WorldSimVectorEnv
from tests.worlds import make_world


@pytest.fixture
def world(tmp_path):
    """A world of this test's own: nobody else has an engine for it."""
    return make_world(tmp_path / "w", end_bias=-50.0)


def worlds_that_fit(env) -> int:
    return env.engine.pool.capacity // env.engine.need


def test_sync_envs_and_vector_envs_of_the_same_settings_share_one_engine(world):
    sync = gym.make_vec("inferix_env/World-v0", num_envs=3, vectorization_mode="sync", world=str(world))
    vector = gym.make_vec("inferix_env/World-v0", num_envs=2, world=str(world))
    single = WorldSimEnv(world=world, num_steps=vector.world_spec.num_steps, obs="block", max_episode_steps=9)
    assert len({id(e.unwrapped.engine) for e in (*sync.envs, vector, single)}) == 1
    assert worlds_that_fit(single) == 6
    sync.reset(seed=0)
    vector.reset(seed=0)
    single.reset(seed=0)
    assert single.engine.pool.reserved == 6 * single.engine.need


@pytest.mark.parametrize(
    "settings", [{"num_steps": 1}, {"window": 2}, {"deterministic": False}, {"kv_dtype": "int8"}, {"dtype": "bfloat16"}]
)
def test_other_settings_are_another_engine(world, settings):
    first, second = (
        WorldSimEnv(world=world, dtype="float32"),
        WorldSimEnv(**{"world": world, "dtype": "float32"} | settings),
    )
    assert first.engine is not second.engine
    assert (second.engine.deterministic, second.engine.pool.kv_dtype) == (
        settings.get("deterministic", True),
        settings.get("kv_dtype"),
    )
    second.reset(seed=0)
    second.step(1)


def test_growing_leaves_open_worlds_as_they_are(world):
    alone = WorldSimEnv(world=world)
    alone.reset(seed=1)
    expected = [alone.step(1)[0] for _ in range(6)]
    alone.close()
    env = WorldSimEnv(world=world)
    env.reset(seed=1)
    seen = []
    others = []
    for _ in range(6):
        others.append(WorldSimEnv(world=world))
        others[-1].reset(seed=2)
        seen.append(env.step(1)[0])
    assert np.array_equal(np.stack(seen), np.stack(expected))


@pytest.mark.parametrize("closed", [True, False])
def test_seats_of_envs_that_left_are_taken_again(world, closed):
    keeper = WorldSimEnv(world=world)
    for seed in range(4):
        envs = WorldSimVectorEnv(3, world=world)
        envs.reset(seed=seed)
        single = WorldSimEnv(world=world)
        single.reset(seed=seed)
        fork = single.fork()
        if closed:
            envs.close()
            single.close()
            fork.close()
        del envs, single, fork
    gc.collect()
    assert worlds_that_fit(keeper) == 1 + 3 + 2
    last = WorldSimEnv(world=world)
    assert keeper.engine.pool.reserved == 0
    assert keeper.seats.shared.num_seats == 2
    assert last.engine is keeper.engine


def test_the_last_env_takes_the_engine_with_it(world):
    before = len(engines.ENGINES)
    env = WorldSimEnv(world=world)
    env.reset(seed=0)
    assert len(engines.ENGINES) == before + 1
    del env
    gc.collect()
    assert len(engines.ENGINES) == before


def test_a_refused_setting_leaves_nothing_behind(world):
    before = len(engines.ENGINES)
    with pytest.raises(ValueError, match="num_steps 0"):
        WorldSimEnv(world=world, num_steps=0)
    gc.collect()
    assert len(engines.ENGINES) == before


FORKED = """
import sys
import gymnasium as gym, torch
import inferix_env

torch.set_num_threads(2)
torch.ones(10**7).exp()  # OpenMP's threads are there, as after any work
envs = gym.make_vec("inferix_env/World-v0", num_envs=2, vectorization_mode="async", world=sys.argv[1])
envs.reset(seed=0)
print(envs.step([0, 1])[0].shape)
envs.close()
"""


def test_forked_envs_do_not_wait_for_threads_that_are_gone(tmp_path):
    world = str(make_world(tmp_path / "w", frame=(128, 128)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    command = [sys.executable, "-c", FORKED, world]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.stdout.strip() == "(2, 128, 128, 3)", result.stderr
