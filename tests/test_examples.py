"""The examples run, in a tiny world, and do what they say."""

import av
import numpy as np
import pytest

from engine import ContinuousActions
from examples import custom_reward, fork_and_compare, own_footage, quickstart, vector
from inferix_env.env import WorldSimEnv
from tests.worlds import make_world


@pytest.fixture(scope="module", params=[1, 2], ids=lambda block: f"block={block}")
def world(request, tmp_path_factory):
    return str(make_world(tmp_path_factory.mktemp("world"), end_bias=-80.0, block=request.param))


@pytest.fixture(scope="module")
def ending_world(tmp_path_factory):
    return str(make_world(tmp_path_factory.mktemp("world")))


def num_frames(path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_quickstart(world, capsys):
    quickstart.main(world, steps=3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("(32, 32, 3) (") and "'energy'" in line for line in lines)


def test_quickstart_goes_on_after_an_end(ending_world, capsys):
    quickstart.main(ending_world, steps=6)
    assert "True" in capsys.readouterr().out


def test_vector(world):
    totals = vector.main(world, steps=3)
    assert totals.shape == (2,)
    assert totals[0] != totals[1]


def test_own_footage(world, tmp_path, capsys):
    own_footage.main(world, out=tmp_path / "clip.mp4", steps=5)
    per_step = WorldSimEnv(world=world).world_spec.block
    assert num_frames(tmp_path / "clip.mp4") == (12 + 5) * per_step
    assert f"{12 * per_step} frames of footage, {5 * per_step} dreamt" in capsys.readouterr().out


def test_footage_from_a_file(world, tmp_path, capsys):
    footage = own_footage.film(WorldSimEnv(world=world), steps=4)
    assert len(footage["actions"]) == len(footage["frames"]) - 1
    np.savez(tmp_path / "footage.npz", **footage)
    own_footage.main(world, tmp_path / "footage.npz", tmp_path / "clip.mp4", steps=2)
    assert f"{len(footage['frames'])} frames of footage" in capsys.readouterr().out


def test_custom_reward(world):
    means = custom_reward.main(world, steps=3)
    assert len(means) == 3
    assert all(0 <= mean <= 1 for mean in means)


def test_custom_reward_takes_the_place_of_the_head(world, monkeypatch):
    monkeypatch.setattr(custom_reward, "calm", lambda frames, action, info: (len(frames) + 7 + action, action == 2))
    per_step = WorldSimEnv(world=world).world_spec.block
    assert custom_reward.main(world, steps=2) == [7 + per_step, 8 + per_step, 9 + per_step]


def test_custom_reward_may_end_an_episode(world, capsys, monkeypatch):
    monkeypatch.setattr(custom_reward, "calm", lambda frames, action, info: (0.0, action == 2))
    custom_reward.main(world, steps=2)
    lengths = [line.split(": ")[1].split(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert lengths == ["2 steps", "2 steps", "1 steps"]


def test_calm_likes_no_fire_and_no_end():
    blue, red = np.zeros((2, 1, 4, 4, 3), np.uint8)
    blue[..., 2], red[..., 0] = 255, 255
    safe, deadly = {"end_probability": 0.0}, {"end_probability": 0.5}
    assert (custom_reward.calm(blue, 0, safe), custom_reward.calm(red, 0, safe)) == ((1.0, False), (0.0, True))
    assert custom_reward.calm(blue, 0, deadly) == (0.5, False)


def test_forks_share_a_past_and_each_future_is_that_of_its_action(world, tmp_path):
    futures = fork_and_compare.main(world, before=3, steps=5, out=tmp_path / "first.png")
    assert futures.shape == (3, 6, 32, 32, 3)
    for action, future in enumerate(futures):
        env = WorldSimEnv(world=world)
        env.reset(seed=0)
        frames = [env.step(a)[0] for a in [0] * 3 + [action] * 5]
        assert np.array_equal(future, frames[2:])
    assert not np.array_equal(futures[1], futures[2])
    fork_and_compare.main(world, before=3, steps=5, out=tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_forks_follow_scripts_and_hold_their_last_action(world, tmp_path):
    turned, held = fork_and_compare.main(
        world, ("left*2, right", "left"), before=0, steps=4, out=tmp_path / "futures.png"
    )
    assert np.array_equal(turned[:3], held[:3])
    assert not np.array_equal(turned[3], held[3])


def test_a_future_is_black_after_its_episode_ends(tmp_path):
    ending = str(make_world(tmp_path / "world", end_bias=80.0))
    futures = fork_and_compare.main(ending, before=0, steps=3, out=tmp_path / "futures.png")
    assert futures[:, :2].any((2, 3, 4)).all()
    assert not futures[:, 2:].any()
    with pytest.raises(ValueError, match="seed 0 ended within 2 steps"):
        fork_and_compare.main(ending, before=2, out=tmp_path / "futures.png")


def test_forks_of_a_world_without_a_list_of_actions_need_some(tmp_path):
    looking = str(make_world(tmp_path / "world", end_bias=-80.0, actions=ContinuousActions((-1.0, -1.0), (1.0, 1.0))))
    with pytest.raises(ValueError, match="choose some with --actions"):
        fork_and_compare.main(looking)
    futures = fork_and_compare.main(looking, ("(1,0)", "(-1,0)*2, noop"), steps=3, out=tmp_path / "futures.png")
    assert not np.array_equal(futures[0], futures[1])


@pytest.fixture(scope="module")
def larger_world(tmp_path_factory):
    """SB3's convolutions take no picture below 36 x 36."""
    return str(make_world(tmp_path_factory.mktemp("world"), frame=(48, 64)))


def test_sb3_learns_on_envs_that_share_an_engine(larger_world, tmp_path, capsys):
    pytest.importorskip("stable_baselines3", exc_type=ImportError)
    from examples import sb3

    learner = sb3.main("inferix_env/World-v0", larger_world, 2, steps=32, rollout=16, out=tmp_path / "agent.zip")
    single = learner.get_env().venv.envs
    assert len({id(env.unwrapped.engine) for env in single}) == 1
    assert learner.observation_space.shape == (3, 48, 64)
    assert learner.num_timesteps == 32
    again = sb3.PPO.load(tmp_path / "agent.zip", device="cpu")
    assert all((a == b).all() for a, b in zip(learner.policy.parameters(), again.policy.parameters(), strict=True))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "32 steps" in last
    assert "mean return" in last  # episodes of this world end within steps


def test_torchrl_collects(ending_world, capsys):
    pytest.importorskip("torchrl", exc_type=ImportError)
    from examples import torchrl_collector

    def collected(seed: int) -> float:
        return torchrl_collector.main("inferix_env/World-v0", ending_world, steps=40, batch=20, seed=seed)

    first = collected(0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("'pixels': (2, 10, 32, 32, 3), 'action': (2, 10, 3)" in line for line in lines)
    assert not all(line.endswith("ends 0") for line in lines)
    assert collected(0) == first
    assert collected(1) != first
