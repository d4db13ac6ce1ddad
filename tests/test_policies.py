"""Trained policies: what they are given and return, where they are found; and midway starts, where they learn."""

from __future__ import annotations

import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import score
from agents.networks import ActorCritic, NetworkSpec, load_network, save_network
from agents.policies import load_policy, make_policy
from agents.trained import FILE, TrainedPolicy
from engine.training.data import Episode, Shards, write_shard
from engine.training.export import before_events, write_midway
from inferix_env import worlds
from inferix_env.env import WorldSimEnv
from inferix_env.midway import moments
from inferix_env.real import RealEnv, real_env, same_actions
from tests.worlds import TINY, make_world

SPEC = NetworkSpec((32, 32), num_actions=3, mirror=(0, 2, 1), inertia=1.0)


@pytest.fixture
def policy_file(tmp_path):
    torch.manual_seed(0)
    save_network(tmp_path / FILE, ActorCritic(SPEC), {"world": "tiny", "greedy": False})
    return tmp_path / FILE


def played(policy, seed, count=20):
    rng = np.random.default_rng(3)
    policy.reset(seed)
    return [policy(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def test_a_file_gives_a_policy_that_repeats_itself(policy_file):
    policy = load_policy(policy_file)
    actions = played(policy, 1)
    assert set(actions) <= {0, 1, 2}
    assert actions == played(policy, 1) == played(load_policy(policy_file.parent), 1)
    assert actions != played(policy, 2)
    assert policy.card["world"] == "tiny"


def test_a_greedy_policy_does_not_draw(policy_file):
    policy = load_policy(policy_file, greedy=True)
    assert played(policy, 1) == played(policy, 2)


def test_a_box_policy_stays_in_its_box():
    network = ActorCritic(NetworkSpec((32, 32), low=(-1.0, 0.0), high=(1.0, 1.0)))
    actions = np.stack(played(TrainedPolicy(network), 0))
    assert actions.shape == (20, 2)
    assert (actions >= [-1, 0]).all()
    assert (actions <= [1, 1]).all()


def test_a_file_round_trips(policy_file, tmp_path):
    network, card = load_network(policy_file)
    assert network.spec == SPEC
    save_network(tmp_path / "again", network, card)
    again, same = load_network(tmp_path / "again")
    assert same == card
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_what_is_no_policy_is_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match="no policy 'nobody': expected one of"):
        load_policy("nobody")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_policy(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no policy"):
        load_policy(tiny / "model.safetensors")


def test_frames_of_another_size_are_refused(policy_file):
    with pytest.raises(ValueError, match=r"uint8 \[32, 32, 3\]"):
        load_policy(policy_file)(np.zeros((16, 32, 3), np.uint8))


def test_a_policy_for_another_env_is_refused(policy_file, tmp_path):
    env = WorldSimEnv(world=make_world(tmp_path / "wide", frame=(32, 64)))
    with pytest.raises(ValueError, match="not made for this env: frame"):
        make_policy(f"trained:{policy_file}", env)
    env.close()


def test_trained_is_the_worlds_own(policy_file, tiny, tmp_path):
    env = WorldSimEnv(world=tiny)
    assert played(make_policy(f"trained:{policy_file}", env), 4) == played(load_policy(policy_file), 4)
    with pytest.raises(ValueError, match="no policy"):
        make_policy("trained", env)
    env.close()
    own = make_world(tmp_path / "own")
    (own / FILE).write_bytes(policy_file.read_bytes())
    env = WorldSimEnv(world=own)
    assert played(make_policy("trained", env), 4) == played(load_policy(policy_file), 4)
    env.close()


def test_torch_is_imported_when_a_policy_is_loaded():
    import subprocess

    code = "import sys, agents.trained; sys.exit('agents.networks' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("world", sorted(p.parent.name for p in worlds.HERE.glob(f"*/{FILE}")))
def test_shipped_policies_act_on_their_worlds_frames(world):
    policy = load_policy(world.replace("_", "-"))
    spec = policy.network.spec
    policy.reset(0)
    action = policy(np.zeros((*spec.frame, 3), np.uint8))
    assert 0 <= action < spec.num_actions if spec.num_actions else len(action) == len(spec.low)


def test_scores_are_of_whole_episodes(policy_file, tiny, tmp_path):
    told = score.Settings(policy=f"trained:{policy_file}", world=str(tiny), dream=True, episodes=3, max_steps=9)
    made = score.score(told)
    assert made["episodes"] == 3
    assert 1 <= made["steps"]["mean"] <= 9
    assert made["tics"]["mean"] == made["steps"]["mean"]
    assert made["greedy"] is False
    assert score.main(["--world", str(tiny), "--episodes", "0"]) == 2


class Counting(gym.Env):
    """A real env of 3 actions whose picture is the step's number; it ends in black after 5."""

    observation_space = gym.spaces.Box(0, 255, (48, 48, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.picture(), {}

    def step(self, action):
        self.steps += 1
        return (np.zeros((48, 48, 3), np.uint8) if self.steps == 5 else self.picture()), 1.0, self.steps == 5, False, {}

    def picture(self):
        made = np.full((48, 48, 3), self.steps * 10 + 5, np.uint8)
        made[0, 0] = 255  # not of one colour: that is how a blank end is told
        return made


def test_the_real_env_has_the_worlds_frames_and_rate():
    gym.register("tests/Counting-v0", entry_point=Counting)
    env = RealEnv(TINY, {"keys": {"d": 2}, "data": {"env": "tests/Counting-v0", "frame_skip": 2}}, max_episode_steps=10)
    frame, info = env.reset(seed=0)
    assert frame.shape == (32, 32, 3)
    assert info["variables"] == {}  # it has no "energy"
    script = make_policy("script:left*2, d", env)  # names of the world's actions and keys
    assert [script(frame) for _ in range(3)] == [1, 1, 2]
    assert env.step(1)[1:4] == (2.0, False, False)
    last = env.step(1)[0]
    frame, reward, terminated, truncated, _ = env.step(1)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert np.array_equal(frame, last)  # the end shows no picture
    env.close()


def test_worlds_without_a_real_env_say_so(tiny):
    with pytest.raises(ValueError, match="names no env"):
        real_env(tiny)
    assert not same_actions(gym.spaces.Discrete(3), gym.spaces.Discrete(2))
    assert same_actions(gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (2,), np.float64))


def make_shards(folder, lengths=(9, 7, 12)) -> Shards:
    """Episodes of 32 x 32 frames whose brightness is the row, with "energy" falling at row 5 of each."""
    episodes, row = [], 0
    for length in lengths:
        numbers = np.arange(row, row + length)
        row += length
        energy = np.where(np.arange(length) < 5, 100.0, 80.0)
        ends = np.zeros(length, np.uint8)
        ends[-1] = 2
        frames = np.broadcast_to((numbers * 8).astype(np.uint8)[:, None, None, None], (length, 32, 32, 3)).copy()
        actions, rewards = numbers % 3, np.ones(length, np.float32)
        episodes.append(Episode(frames, actions, rewards, ends, np.ones(length, np.uint8), np.float32(energy)[:, None]))
    metadata = {"actions": {"kind": "discrete", "n": 3, "names": ["none", "left", "right"]}, "variables": ["energy"]}
    write_shard(folder / "train-00000.safetensors", episodes, metadata)
    return Shards(folder)


def test_moments_lie_amid_episodes_and_before_events(tmp_path):
    shards = make_shards(tmp_path)
    soon = before_events(shards, 3)
    assert np.flatnonzero(soon).tolist() == [2, 3, 4, 11, 12, 13, 18, 19, 20]
    write_midway(tmp_path / "midway.npz", shards, 12, 4)
    made = moments(tmp_path)
    assert len(made) == 12
    for i in range(12):
        start = made.start(i)
        rows = np.round(start.frames.mean(axis=(1, 2, 3)) / 8).astype(int)
        assert (np.diff(rows) == 1).all()
        assert rows[-1] not in (8, 15, 27)  # something comes after
        assert start.actions[0].sum() == 0
        assert start.actions[1:].argmax(1).tolist() == [row % 3 for row in rows[1:]]


@pytest.fixture
def midway_world(tmp_path):
    world = make_world(tmp_path / "midway", end_bias=-50.0)
    write_midway(world / "midway.npz", make_shards(tmp_path), 6, 2)
    return world


def test_a_world_begins_midway_where_it_is_told_to(midway_world):
    env = WorldSimEnv(world=midway_world)
    usual, _ = env.reset(seed=0)
    frame, info = env.reset(seed=0, options={"starts": "midway", "start": 4})
    assert np.array_equal(frame, moments(midway_world).start(4).frames[-1])
    assert info["variables"]["energy"] == moments(midway_world).start(4).variables[-1, 0]
    _, info = env.reset(seed=0, options={"starts": "midway", "variables": {"energy": 33.0}})
    assert info["variables"]["energy"] == 33.0
    assert np.array_equal(env.reset(seed=0)[0], usual)
    with pytest.raises(ValueError, match=r"openings.*midway"):
        env.reset(options={"starts": "anywhere"})
    with pytest.raises(ValueError, match="from 0 to 5"):
        env.reset(options={"starts": "midway", "start": 6})
    env.close()


def test_a_world_without_moments_says_so(tiny):
    env = WorldSimEnv(world=tiny)
    with pytest.raises(ValueError, match=r"midway\.npz"):
        env.reset(options={"starts": "midway"})
    env.close()


def test_mirrors_are_checked():
    with pytest.raises(ValueError, match="mirror"):
        replace(SPEC, mirror=(0, 1)).check()
