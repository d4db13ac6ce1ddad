"""WorldSimEnv: Gymnasium's contract, starts, determinism, errors."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from PIL import Image

import inferix_env  # noqa: F401  (registers the ids)
from engine import ContinuousActions, DictActions, DiscreteActions
from inferix_env.env import WorldSimEnv
from tests.worlds import make_world


@pytest.fixture
def env(endless):
    made = WorldSimEnv(world=endless)
    yield made
    made.close()


def play(env, actions, seed=0, options=None):
    obs, info = env.reset(seed=seed, options=options)
    rows = [(obs, 0.0, False, info)]
    for action in actions:
        obs, reward, terminated, _, info = env.step(action)
        rows.append((obs, reward, terminated, info))
        if terminated:
            break
    return rows


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a[0], b[0])
        and a[1:3] == b[1:3]
        and a[3]["variables"] == b[3]["variables"]
        and a[3]["expected_variables"] == b[3]["expected_variables"]
        and a[3]["end_probability"] == b[3]["end_probability"]
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("obs", ["frame", "block"])
def test_check_env_passes_without_warnings(tiny, obs, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("inferix_env/World-v0", world=str(tiny), obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_the_shipped_id_is_registered_and_importing_is_fast_and_torch_free():
    code = (
        "import time, sys; t = time.perf_counter(); import gymnasium; g = time.perf_counter() - t;"
        "t = time.perf_counter(); import inferix_env; own = time.perf_counter() - t;"
        "assert 'torch' not in sys.modules and 'pygame' not in sys.modules;"
        "assert 'inferix_env/DoomTakeCover-v0' in gymnasium.registry; print(g, own)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("obs", "shape"), [("frame", (32, 32, 3)), ("block", (2, 32, 32, 3))])
def test_observations_and_frames(tmp_path, obs, shape):
    world = make_world(tmp_path / "w", block=2, end_bias=-50.0)
    env = WorldSimEnv(world=world, obs=obs)
    first, _ = env.reset(seed=0)
    seen, reward, terminated, truncated, info = env.step(1)
    assert first.shape == seen.shape == shape
    assert first.dtype == seen.dtype == np.uint8
    assert info["frames"].shape == (2, 32, 32, 3)
    assert np.array_equal(info["frames"][-1] if obs == "frame" else info["frames"], seen)
    assert (type(reward), terminated, truncated) == (float, False, False)
    assert set(info) == {"frames", "end_probability", "variables", "expected_variables"}
    assert set(info["variables"]) == set(info["expected_variables"]) == {"energy"}


def test_same_seed_same_episode_across_resets_and_envs(tiny):
    actions = [1, 2, 0, 1, 2, 2]
    env = WorldSimEnv(world=tiny)
    first = play(env, actions, seed=5)
    assert same(first, play(env, actions, seed=5))
    assert same(first, play(WorldSimEnv(world=tiny), actions, seed=5))
    assert not same(first, play(env, actions, seed=6))


def test_two_envs_share_no_state(endless):
    alone = play(WorldSimEnv(world=endless), [1] * 5, seed=1)
    a, b = WorldSimEnv(world=endless), WorldSimEnv(world=endless)
    a.reset(seed=1)
    b.reset(seed=2)
    rows = []
    for _ in range(5):
        rows.append(a.step(1)[0])
        b.step(2)
    assert all(np.array_equal(x, row[0]) for x, row in zip(rows, alone[1:], strict=True))


def test_step_needs_a_running_episode(tiny, endless):
    env = WorldSimEnv(world=endless, max_episode_steps=2)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(0)
    env.reset(seed=0)
    assert env.step(0)[3] is False
    assert env.step(0)[3] is True
    with pytest.raises(ResetNeeded):
        env.step(0)
    mortal = WorldSimEnv(world=make_world(tiny.parent / "mortal", end_bias=50.0))
    mortal.reset(seed=0)
    assert mortal.step(0)[2] is True
    with pytest.raises(ResetNeeded):
        mortal.step(0)


def test_starts_are_drawn_by_seed_or_chosen(env):
    drawn = {env.reset(seed=s)[0].tobytes() for s in range(12)}
    chosen = [env.reset(seed=0, options={"start": i})[0] for i in range(4)]
    assert len(drawn) > 1
    assert drawn <= {frame.tobytes() for frame in chosen}
    # The start does not change what is drawn after it.
    second = [play(env, [1], seed=3, options={"start": 2})[1][0] for _ in range(2)]
    assert np.array_equal(*second)


def test_own_footage_is_committed_and_its_position_kept(env):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    options = {"frames": frames, "actions": [0, 1, 2, 1, 0], "variables": {"energy": 40.0}}
    obs, info = env.reset(seed=0, options=options)
    assert np.array_equal(obs, frames[-1])
    assert info["variables"] == {"energy": 40.0}
    assert env.world.table.length == 6
    with_past = env.step(1)[0]
    env.reset(seed=0, options={"frames": frames[-1:], "variables": {"energy": 40.0}})
    assert not np.array_equal(env.step(1)[0], with_past)


def test_one_picture_as_a_start(env, tmp_path):
    path = tmp_path / "start.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(path)
    obs, info = env.reset(seed=0, options={"image": str(path)})
    assert (obs == 90).all()
    assert info["variables"] == {"energy": 100.0}


BAD_OPTIONS = [
    ({"begin": 1}, "begin.*expected some of"),
    ({"start": 4}, "expected an integer from 0 to 3"),
    ({"start": "first"}, "expected an integer"),
    ({"start": 0, "image": "x.png"}, r"one of start \(or starts\), frames and image"),
    ({"image": "nowhere.png"}, "cannot be read"),
    ({"frames": np.zeros((2, 32, 32, 3), np.uint8)}, "0 actions for 2 frames"),
    ({"frames": np.zeros((1, 16, 32, 3), np.uint8)}, r"expected uint8 \[K, \*\[32, 32, 3\]\]"),
    ({"frames": np.zeros((1, 32, 32, 3), np.float32)}, "float32"),
    ({"frames": np.zeros((2, 32, 32, 3), np.uint8), "actions": [7]}, "from 0 to 2"),
    ({"image": "x.png", "variables": {"mana": 1}}, "cannot be read|mana"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_and_the_world_stands(env, options, message):
    twin = play(env, [1, 2], seed=1)
    env.reset(seed=1)
    first = env.step(1)[0]
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert np.array_equal(first, twin[1][0])
    assert np.array_equal(env.step(2)[0], twin[2][0])


@pytest.mark.parametrize("action", [3, -1, 1.5, "left", None, [1]])
def test_bad_actions_are_refused_before_the_world_moves(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected an integer from 0 to 2 \(0 none, 1 left, 2 right\)"):
        env.step(action)
    assert env.world.block == 0


BAD_ARGUMENTS = [
    ({"world": "quake"}, "no world 'quake': expected one of"),
    ({"device": "cuda:9"}, "CUDA devices"),
    ({"device": "abacus"}, "expected cpu, cuda"),
    ({"dtype": "int3"}, "dtype 'int3'"),
    ({"obs": "pixels"}, "obs 'pixels': expected one of"),
    ({"render_mode": "ascii"}, "render_mode"),
    ({"num_steps": 0}, "num_steps 0"),
    ({"window": 0}, "window 0"),
    ({"max_episode_steps": 1}, "at least 2"),
    ({"kv_dtype": "int3"}, "kv_dtype 'int3'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(endless, arguments, message):
    with pytest.raises(ValueError, match=message):
        WorldSimEnv(**{"world": endless, **arguments})


def test_reward_fn_replaces_the_head_and_is_checked(endless):
    env = WorldSimEnv(world=endless, reward_fn=lambda frames, action, info: (float(frames.mean()) + action, False))
    env.reset(seed=0)
    obs, reward, *_ = env.step(1)
    assert reward == pytest.approx(float(obs.mean()) + 1)
    for wrong in (float("nan"), None, "much", (1.0, 2.0), (1.0, "no"), (1.0, True, {}), (None, False)):
        env = WorldSimEnv(world=endless, reward_fn=lambda frames, action, info, wrong=wrong: wrong)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"expected \(reward, terminated\)"):
            env.step(1)


def test_reward_fn_may_end_an_episode_or_leave_that_to_the_world(endless, tiny):
    env = WorldSimEnv(world=endless, reward_fn=lambda frames, action, info: (1.0, action == 2))
    env.reset(seed=0)
    assert env.step(1)[1:4] == (1.0, False, False)
    assert env.step(2)[1:4] == (1.0, True, False)
    with pytest.raises(ResetNeeded):
        env.step(1)
    env.reset()
    assert not env.over
    for answer in (3, (3, False)):  # the world's own end stands
        env = WorldSimEnv(world=tiny, reward_fn=lambda frames, action, info, answer=answer: answer)
        ends = [row[2] for row in play(env, [1] * 40)]
        assert ends == [False] * (len(ends) - 1) + [True]


def test_actions_may_be_given_for_every_frame(tmp_path):
    env = WorldSimEnv(make_world(tmp_path / "two", end_bias=-80.0, block=2))
    held, each = play(env, [1, 2, 1]), play(env, [np.array([1, 1]), [2, 2], np.array([1, 1])])
    assert same(held, each)
    assert not same(held, play(env, [[1, 0], 2, 1]))
    with pytest.raises(ValueError, match="each of 3 frames: expected 2, the frames of this step"):
        env.step([1, 2, 0])
    with pytest.raises(ValueError, match="expected an integer from 0 to 2"):
        env.step([1, 7])
    single = WorldSimEnv(make_world(tmp_path / "one"))
    single.reset(seed=0)
    with pytest.raises(ValueError, match="expected an integer"):
        single.step([1])


def test_render_modes(endless, monkeypatch):
    env = WorldSimEnv(world=endless, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), obs)
    env = WorldSimEnv(world=endless, render_mode="rgb_array_list")
    env.reset(seed=0)
    seen = [env.step(1)[0] for _ in range(3)]
    frames = env.render()
    assert len(frames) == 4
    assert np.array_equal(frames[-1], seen[-1])
    assert env.render() == []
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = WorldSimEnv(world=endless, render_mode="human")
    env.reset(seed=0)
    env.step(1)
    assert env.render() is None
    env.close()
    env.close()


def test_the_window_and_num_steps_arguments_reach_the_engine(endless):
    wide, narrow = WorldSimEnv(world=endless), WorldSimEnv(world=endless, window=1, num_steps=5)
    assert narrow.engine.policy.window == 1
    assert len(narrow.engine.passes) == 6
    actions = [1, 2, 1, 1]
    assert not same(play(wide, actions), play(narrow, actions))


def test_gymnasium_sees_keys_and_rate(env):
    keys = env.get_keys_to_action()
    assert keys[()] == 0
    assert keys[(ord("a"),)] == 1
    assert env.metadata["render_fps"] == 10


SPACES = [
    (ContinuousActions((-1.0, 0.0), (1.0, 2.0)), np.array([0.5, 1.0], np.float32), np.array([0.5, 3.0], np.float32)),
    (
        DictActions((("move", DiscreteActions(3)), ("look", ContinuousActions((-1.0,), (1.0,))))),
        {"move": 1, "look": np.array([0.2], np.float32)},
        {"move": 1},
    ),
]


@pytest.mark.parametrize(("actions", "good", "bad"), SPACES)
def test_continuous_and_dict_actions(tmp_path, actions, good, bad):
    env = WorldSimEnv(world=make_world(tmp_path / "w", actions=actions, end_bias=-50.0))
    assert env.action_space.contains(good)
    env.reset(seed=0)
    env.step(good)
    env.step(env.action_space.sample())
    with pytest.raises(ValueError, match="expected"):
        env.step(bad)
    with warnings.catch_warnings():  # unsymmetric bounds are the world's own: a recommendation, not an error
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)


def test_a_sync_vector_env_is_two_envs(endless):
    vector = gym.make_vec("inferix_env/World-v0", num_envs=2, vectorization_mode="sync", world=str(endless))
    vector.reset(seed=[3, 4])
    obs = vector.step(np.array([1, 2]))[0]
    single = WorldSimEnv(world=endless)
    single.reset(seed=4)
    assert np.array_equal(single.step(2)[0], obs[1])
    vector.close()


def test_a_world_without_whole_starts_says_so(tmp_path):
    world = make_world(tmp_path / "w")
    np.savez(world / "starts.npz", frames=np.zeros((1, 1, 32, 32, 3), np.uint8))
    env = WorldSimEnv(world=world)
    with pytest.raises(ValueError, match=r"lacks \['actions', 'variables'\]"):
        env.reset(seed=0)
    (world / "starts.npz").unlink()
    with pytest.raises(ValueError, match=r"no starts\.npz"):
        env.reset(seed=0)


def future(env, actions=(1, 2, 0, 1), resets=2) -> list:
    """What an env gives from here on: some steps, then episodes of unseeded resets."""
    rows = [env.step(action) for action in actions]
    for _ in range(resets):
        rows += [env.reset(), env.step(1)]
    return [[row[0].tobytes(), *row[1:-1], {**row[-1], "frames": row[-1]["frames"].tobytes()}] for row in rows]


@pytest.mark.parametrize("settings", [{}, {"obs": "block"}, {"window": None, "num_steps": 1}, {"kv_dtype": "int8"}])
def test_a_snapshot_goes_on_bit_for_bit(endless, settings):
    env = WorldSimEnv(world=endless, max_episode_steps=8, **settings)
    rows = play(env, [1, 2, 2], seed=4)
    value = env.snapshot()
    assert isinstance(value, bytes)
    expected = future(env)
    for other in (env, WorldSimEnv(world=endless, **settings)):
        obs, info = other.restore(value)
        assert np.array_equal(obs, rows[-1][0])
        assert same([(obs, 0.0, False, info)], [(rows[-1][0], 0.0, False, rows[-1][3])])
        assert np.array_equal(info["frames"], rows[-1][3]["frames"])
        assert other.state.steps == 3
        assert future(other, resets=2 if other is env else 0) == expected[: None if other is env else 4]


def test_the_horizon_is_that_of_the_snapshot_for_its_episode_alone(endless):
    env = WorldSimEnv(world=endless, max_episode_steps=5)
    play(env, [1, 1, 1])
    other = WorldSimEnv(world=endless)
    other.restore(env.snapshot())
    assert [other.step(1)[3] for _ in range(2)] == [False, True]
    with pytest.raises(ResetNeeded):
        other.step(1)
    over = other.snapshot()
    other.reset()
    assert not any(other.step(1)[3] for _ in range(6))
    other.restore(over)
    with pytest.raises(ResetNeeded):
        other.step(1)


def test_reset_takes_a_snapshot_through_wrappers(endless):
    env = gym.make("inferix_env/World-v0", world=str(endless), max_episode_steps=4)
    env.reset(seed=1)
    env.step(1)
    value = env.unwrapped.snapshot()
    expected = env.step(2)[0]
    obs, info = env.reset(options={"snapshot": value})
    assert np.array_equal(obs, info["frames"][-1])
    assert np.array_equal(env.step(2)[0], expected)
    assert [env.step(1)[3] for _ in range(3)] == [False, False, True]  # the wrapper has counted anew
    env.unwrapped.restore(value)


def test_a_fork_has_the_past_in_common_and_no_more(endless):
    env = WorldSimEnv(world=endless, max_episode_steps=20)
    play(env, [1, 2, 2, 1, 1], seed=4)
    fork, other = env.fork(), env.fork(seed=123)
    assert fork.engine is env.engine
    obs = fork.step(2)[0]
    assert not np.array_equal(other.step(2)[0], obs)
    fork.step(1)
    other.close()
    assert np.array_equal(env.step(2)[0], obs)  # as if there were no fork
    assert (fork.state.steps, env.state.steps) == (7, 6)
    assert np.array_equal(env.step(1)[0], fork.frames[-1])
    assert future(env) == future(fork)  # also what they draw
    env.close()
    fork.step(1)


def test_snapshots_and_forks_render_on(endless):
    env = WorldSimEnv(world=endless, render_mode="rgb_array")
    obs = play(env, [1, 2])[-1][0]
    value, fork = env.snapshot(), env.fork()
    assert np.array_equal(fork.render(), obs)
    env.reset()
    env.restore(value)
    assert np.array_equal(env.render(), obs)
    recorded = WorldSimEnv(world=endless, render_mode="rgb_array_list")
    recorded.restore(value)
    recorded.step(1)
    assert [f.shape for f in recorded.render()] == [(32, 32, 3)] * 2


def bad_snapshots(env) -> list[tuple]:
    value = env.snapshot()
    world = env.engine.snapshot(env.world)
    changed = value.replace(b"inferix_env episode", b"inferix_env postage")
    newer = value.replace(b'"version":"1"', b'"version":"9"')
    flipped = value[:-1] + bytes([value[-1] ^ 1])
    return [
        ("text", "expected the bytes"),
        (None, "expected the bytes"),
        (b"", "truncated or no snapshot"),
        (b"no snapshot", "truncated or no snapshot"),
        ((2).to_bytes(8, "little") + b"[]", "truncated or no snapshot"),
        (value[:-9], "truncated or no snapshot"),
        (world, "its format is another"),
        (changed, "its format is another"),
        (newer, "version 9"),
        (flipped, "damaged"),
    ]


def test_foreign_values_are_refused_and_the_episode_goes_on(env, endless, tmp_path):
    twin = play(env, [1, 2], seed=1)
    values = bad_snapshots(env)
    for folder, settings in ((make_world(tmp_path / "wide", frame=(32, 64)), {}), (endless, {"num_steps": 5})):
        foreign = WorldSimEnv(world=folder, **settings)
        foreign.reset(seed=0)
        values.append((foreign.snapshot(), "expected .*this env's world|another model or engine"))
    play(env, [1], seed=1)
    for value, message in values:
        for call in (env.restore, lambda value: env.reset(options={"snapshot": value})):
            with pytest.raises(ValueError, match=message):
                call(value)
    assert np.array_equal(env.step(2)[0], twin[2][0])


def test_a_snapshot_comes_alone(env):
    env.reset(seed=0)
    value = env.snapshot()
    with pytest.raises(ValueError, match=r"with seed 3: expected the snapshot alone"):
        env.reset(seed=3, options={"snapshot": value})
    with pytest.raises(ValueError, match=r"with options \['start'\]: expected the snapshot alone"):
        env.reset(options={"snapshot": value, "start": 1})


def test_no_episode_no_snapshot_and_no_closed_env(endless):
    env = WorldSimEnv(world=endless)
    for call in (env.snapshot, env.fork):
        with pytest.raises(ResetNeeded, match="reset"):
            call()
    env.reset(seed=0)
    value = env.snapshot()
    env.close()
    for call in (env.snapshot, env.fork, env.reset, lambda: env.step(0), lambda: env.restore(value)):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


def test_frame_stacking(endless):
    env = gym.wrappers.FrameStackObservation(WorldSimEnv(world=endless), stack_size=3)
    first, _ = env.reset(seed=0)
    frames = [env.step(1)[0] for _ in range(3)]
    assert first.shape == frames[-1].shape == (3, 32, 32, 3)
    assert np.array_equal(frames[-1][:2], frames[-2][1:])
    assert env.observation_space.contains(frames[-1])
