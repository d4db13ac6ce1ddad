"""`parallel=`: envs on several ranks are envs: the same five values, forks, snapshots, guards, prompts."""

from __future__ import annotations

import itertools
import json
import os
import signal

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import inferix_env  # noqa: F401  (registers the ids)
from engine import Exchange, ParallelConfig, WorkerLost
from inferix_env.env import WorldSimEnv
from inferix_env.vector import WorldSimVectorEnv
from tests import test_published_env
from tests.sharded import CLOSE, CONFIG, gone, on_two_ranks

ACTIONS = (0, 1, 2, 1)
published_folder = test_published_env.base  # a fixture


@pytest.fixture(scope="module")
def two(endless):
    return on_two_ranks(endless)


@pytest.fixture(scope="module")
def one(endless):
    return WorldSimEnv(endless, dtype="float32")


def played(env, actions=ACTIONS, seed=None) -> list:
    made = [] if seed is None else [env.reset(seed=seed)]
    return made + [env.step(action) for action in actions]


def same_values(far, near) -> None:
    """Observations to a grey level, rewards and odds to rounding, the rest exactly."""
    assert len(far) == len(near)
    for x, y in zip(far, near, strict=True):
        assert np.abs(x[0].astype(int) - y[0]).max() <= 1
        assert np.abs(x[-1]["frames"].astype(int) - y[-1]["frames"]).max() <= 1
        assert x[-1]["variables"] == y[-1]["variables"]
        assert x[-1]["end_probability"] == pytest.approx(y[-1]["end_probability"], abs=CLOSE)
        if len(x) == 5:
            assert x[1] == pytest.approx(y[1], abs=CLOSE)
            assert x[2:4] == y[2:4]


def test_an_env_on_two_ranks_is_the_env_on_one(two, one):
    same_values(played(two, seed=1), played(one, seed=1))
    forks = [env.fork(seed=7) for env in (two, one)]
    same_values(*(played(fork) for fork in forks))
    blobs = [env.snapshot() for env in (two, one)]
    same_values(played(two), played(one))
    for env, blob in zip((two, one), reversed(blobs), strict=True):  # each goes on from the other's snapshot
        env.restore(blob)
    same_values(played(two), played(one))
    for fork in forks:
        fork.close()
    assert not two.engine.lost


def test_the_same_seed_and_actions_give_the_same_bits(two):
    first, again = (played(two, seed=5) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        assert np.array_equal(x[0], y[0])
        assert x[1:-1] == y[1:-1]


def test_bad_actions_and_options_leave_the_episode_as_it_is(two, one):
    played(two, seed=2)
    played(one, seed=2)
    for env in (two, one):
        with pytest.raises(ValueError, match="action 9"):
            env.step(9)
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            env.restore(env.snapshot()[:-9])
    same_values(played(two), played(one))


def test_gymnasium_finds_nothing_amiss(endless, two):
    env = on_two_ranks(endless)
    assert env.engine is two.engine
    check_env(env, skip_render_check=True)
    env.close()


def test_a_vector_env_on_two_ranks(endless, two):
    envs = [
        WorldSimVectorEnv(3, endless, dtype="float32", max_episode_steps=2, parallel=parallel)
        for parallel in (CONFIG, None)
    ]
    assert envs[0].engine is two.engine
    for env in envs:
        env.reset(seed=3)
    for step in range(4):  # past the horizon: worlds begin again
        far, near = (env.step(np.array([0, 1, 2])) for env in envs)
        assert np.abs(far[0].astype(int) - near[0]).max() <= 1
        np.testing.assert_allclose(far[1], near[1], atol=CLOSE)
        assert np.array_equal(far[3], near[3]), step
    for env in envs:
        env.fork(0, onto=[2])
        env.close()


def test_a_guard_reads_the_same(endless, one):
    far, near = (WorldSimEnv(endless, dtype="float32", guard="renoise", parallel=x) for x in (CONFIG, None))
    made = [[values[-1]["uncertainty"]["renoise"] for values in played(env, seed=1)] for env in (far, near)]
    assert made[0] == pytest.approx(made[1], abs=CLOSE)
    assert made[0][-1] > 0
    far.close()
    near.close()


def test_what_parallel_takes(endless):
    for wrong, words in ((0, "ranks 0"), ("many", "ranks 'many'"), (1.5, "a number of ranks")):
        with pytest.raises(ValueError, match=words):
            WorldSimEnv(endless, parallel=wrong)
    env = WorldSimEnv(endless)
    with pytest.raises(RuntimeError, match="parallel="):
        env.recover()


# Slow: ranks of their own.


def differs(far: list, near: list) -> int:
    """By how many grey levels frames of two rollouts differ at most."""
    pairs = zip(far, near, strict=True)
    return max(int(np.abs(x[-1]["frames"].astype(int) - y[-1]["frames"]).max()) for x, y in pairs)


@pytest.mark.slow
def test_a_text_world_keeps_its_prompts_over_a_fault(published_folder):
    """Contexts are made again on new ranks; the prompt that the world began with is not the one that holds."""
    arguments = {"world": published_folder / "text", "preset": test_published_env.TEXT, "base": published_folder}
    arguments |= {"codec": "preview", "dtype": "float32"}
    far, near = (
        WorldSimEnv(**arguments, prompt="a forest", parallel=parallel)
        for parallel in (ParallelConfig(2, "ring", snapshot_every=2), None)
    )
    script = ("", "a sea", "")
    first = [played(env, script, seed=1) for env in (far, near)]
    assert differs(*first) <= 1
    pids = far.engine.pids
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerLost, match="rank 0 died"):
        far.step("a red fox")
    assert gone(pids)
    far.recover()
    again = [played(env, ("", "a forest", "")) for env in (far, near)]
    assert differs(*again) <= 1
    assert again[0][-1][-1]["prompt"] == "a forest"
    envs = WorldSimVectorEnv(2, **arguments, parallel=far.settings.parallel)
    assert envs.engine is far.engine
    assert envs.reset(seed=1)[1]["num_frames"].tolist() == [9, 9]
    assert envs.step(("a sea", ""))[0].shape == (2, 32, 48, 3)
    envs.close()
    assert not far.engine.lost
    far.close()
    assert far.engine.lost == "it was closed"
    assert gone(pids)


@pytest.mark.slow
def test_a_game_on_two_ranks(published_folder):
    """Its picture is read by one rank, and its VAE decodes on both."""
    arguments = test_published_env.game_of(published_folder, "universal") | {"dtype": "float32"}
    far, near = (WorldSimEnv(**arguments, parallel=parallel) for parallel in (ParallelConfig(2, "all-gather"), None))
    pressed = {"keyboard": np.array([1, 0, 0, 1], np.int8), "mouse": np.array([0.5, -0.5], np.float32)}
    made = [played(env, [pressed] * 4, seed=3) for env in (far, near)]
    assert differs(*made) <= 1
    near.restore(far.snapshot())
    assert differs(played(far, [pressed]), played(near, [pressed])) <= 1
    far.close()


@pytest.mark.slow
def test_the_planner_changes_the_exchange_amid_an_episode(endless, one, monkeypatch, tmp_path):
    """One more world makes another plan, here of another exchange: all worlds move to new shares, and go on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    env = WorldSimEnv(endless, dtype="float32", parallel=ParallelConfig(2, snapshot_every=2))
    assert json.loads((tmp_path / "inferix_env" / "links.json").read_text())
    exchanges = itertools.cycle([Exchange(2), Exchange(1, "ring", 2)])
    monkeypatch.setattr(env.engine.planning, "choose", lambda lengths: next(exchanges))
    far, near = (played(x, seed=4) for x in (env, one))
    same_values(far, near)
    assert str(env.engine.exchange) in ("Ulysses 2", "ring pass-KV 2")
    assert "chosen" in str(env.engine.plan)
    os.kill(env.engine.pids[1], signal.SIGKILL)
    with pytest.raises(WorkerLost):
        env.step(0)
    env.recover()
    same_values(played(env), played(one))
    env.close()


@pytest.mark.slow
def test_a_fault_amid_a_guards_reading_leaves_no_episode(endless):
    """The world has moved and the episode has not: it is not gone on with as though they agreed."""
    env = WorldSimEnv(
        endless, dtype="float32", guard="renoise", parallel=ParallelConfig(2, "ulysses", snapshot_every=1)
    )
    played(env, seed=1)
    read = env.guard.signals["renoise"]

    def fail(sim, moment):
        os.kill(env.engine.pids[1], signal.SIGKILL)
        return read(sim, moment)

    env.guard.signals["renoise"] = fail
    with pytest.raises(WorkerLost):
        env.step(0)
    env.guard.signals["renoise"] = read
    env.recover()
    with pytest.raises(ResetNeeded):
        env.step(0)
    played(env, seed=1)
    env.close()


@pytest.mark.slow
@pytest.mark.gpu
def test_ranks_that_share_one_gpu(endless):
    """Gloo, as NCCL wants a device for every rank."""
    far, near = (
        WorldSimEnv(endless, device="cuda:0", dtype="float32", parallel=parallel)
        for parallel in (ParallelConfig(2, "ulysses", device="cuda:0"), None)
    )
    same_values(played(far, seed=1), played(near, seed=1))
    far.close()
