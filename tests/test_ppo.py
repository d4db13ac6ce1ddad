"""PPO: its arithmetic, what it learns, where it goes on, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tqdm import tqdm

import inferix_env
from agents import ppo
from agents.networks import ActorCritic, Memory, NetworkSpec, load_network, shrunk
from agents.ppo import PPO, Settings, advantages_of
from engine.actions import ContinuousActions
from tests.worlds import make_world

SMALL = {"env": "inferix_env/World-v0", "total_steps": 64, "num_envs": 4, "num_steps": 8, "minibatch": 16, "epochs": 2}


def settings(out: Path, world: Path, **changes) -> Settings:
    given = {
        **SMALL,
        "world": str(world),
        "out": out,
        "horizon": 6,
        "real_every": 0,
        "save_every": 1,
        "stack": 2,
        "keep": 0,
    }
    return Settings(**(given | changes))


def test_advantages_stop_at_ends_and_look_behind_cuts():
    rewards, values = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [20.0], [30.0]])
    nexts = torch.tensor([[20.0], [7.0], [40.0]])
    cut = advantages_of(rewards, values, nexts, torch.zeros(3, 1), torch.tensor([[0], [1], [0]]).bool(), 0.9, 0.8)
    second = 2 + 0.9 * 7 - 20  # the value of the last observation counts, nothing of the next episode
    assert cut[:, 0].tolist() == pytest.approx([1 + 0.9 * 20 - 10 + 0.72 * second, second, 3 + 0.9 * 40 - 30], rel=1e-4)
    ended = advantages_of(
        rewards, values, nexts, torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([[0], [1], [0]]).bool(), 0.9, 0.8
    )
    assert ended[1, 0].item() == pytest.approx(2 - 20)


def test_shrunk_frames_are_averages():
    frames = np.random.default_rng(0).integers(0, 256, (2, 7, 6, 3), dtype=np.uint8)
    small = shrunk(frames, 2)
    assert small.shape == (2, 3, 3, 3)
    assert abs(int(small[1, 2, 1, 0]) - frames[1, 4:6, 2:4, 0].mean()) <= 0.5


def test_memory_stacks_frames_and_begins_anew():
    spec = NetworkSpec((32, 32), num_actions=3, shrink=2, stack=3)
    memory = Memory(spec, 2)
    frames = [np.full((2, 32, 32, 3), level, np.uint8) for level in (10, 20, 30)]
    memory.begin(np.arange(2), frames[0])
    memory.add(frames[1], np.array([1, 2]))
    assert memory.frames[:, :, 0, 0, 0].tolist() == [[10, 10, 20]] * 2
    assert memory.actions.tolist() == [[0, 1, 0], [0, 0, 1]]
    memory.begin(np.array([1]), frames[2][:1])
    assert memory.frames[:, :, 0, 0, 0].tolist() == [[10, 10, 20], [30, 30, 30]]
    assert memory.actions.tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec((32, 32), num_actions=3, mirror=(0, 2, 1)),
        NetworkSpec((32, 48), low=(-1.0, 0.0), high=(1.0, 1.0), mirror=(-1, 1)),
    ],
)
def test_a_mirrored_picture_gives_the_mirrored_action(spec):
    torch.manual_seed(0)
    network = ActorCritic(spec)
    frames = torch.randint(0, 256, (5, 4, *spec.small, 3), dtype=torch.uint8)
    lasts = torch.rand(5, spec.action_width)
    with torch.no_grad():
        one, value = network(frames, lasts)
        mirrored = lasts[:, [0, 2, 1]] if spec.num_actions else lasts * torch.tensor([-1.0, 1.0])
        other, other_value = network(frames.flip(3), mirrored)
    if spec.num_actions:
        assert torch.allclose(one.logits[:, [0, 2, 1]], other.logits, atol=1e-5)
    else:
        assert torch.allclose(one.mean * torch.tensor([-1.0, 1.0]), other.mean, atol=1e-5)
    assert torch.allclose(value, other_value, atol=1e-4)


def test_numbers_of_a_box_cover_its_range():
    network = ActorCritic(NetworkSpec((32, 32), low=(-1.0, 0.0), high=(1.0, 0.5)))
    assert network.taken(np.array([[-3.0, -1.0], [0.5, 1.0]])).tolist() == [[-1, 0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("observations", "actions", "mirror", "words"),
    [
        (gym.spaces.Box(0, 1, (32, 32, 3)), gym.spaces.Discrete(3), (), "uint8 picture"),
        (gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), gym.spaces.MultiBinary(3), (), "Discrete"),
        (gym.spaces.Box(0, 255, (24, 32, 3), np.uint8), gym.spaces.Discrete(3), (), "16 pixels"),
        (gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), gym.spaces.Discrete(3), (1, 2, 0), "such as 0 2 1"),
        (gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), gym.spaces.Box(-1, 1, (2,)), (1,), "1 or -1"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(observations, actions, mirror, words):
    with pytest.raises(ValueError, match=words):
        NetworkSpec.of(observations, actions, mirror=mirror)


def test_a_run_writes_policy_log_and_plot_and_ends_in_order(tiny, tmp_path):
    ppo.main(
        [
            "--env",
            "inferix_env/World-v0",
            "--world",
            str(tiny),
            "--out",
            str(tmp_path / "run"),
            "--num-envs",
            "4",
            "--num-steps",
            "8",
            "--total-steps",
            "64",
            "--real-every",
            "0",
            "--shape",
            "energy=0.1",
        ]
    )
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert [int(row["steps"]) for row in rows] == [32, 64]
    assert all(np.isfinite(float(row["value_loss"])) for row in rows)
    network, card = load_network(tmp_path / "run" / "policy.safetensors")
    assert network.spec.frame == (32, 32)
    assert card["steps"] == 64
    assert (tmp_path / "run" / "gap.png").stat().st_size > 1000


def test_a_run_that_stops_early_goes_on_as_one_that_did_not(tiny, tmp_path):
    PPO(settings(tmp_path / "whole", tiny)).run()
    PPO(settings(tmp_path / "parts", tiny, stop=32)).run()
    first, _ = load_network(tmp_path / "parts" / "policy.safetensors")
    PPO(settings(tmp_path / "parts", tiny)).run()
    whole, parts = (load_network(tmp_path / name / "policy.safetensors")[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)
    assert not all(torch.equal(first.state_dict()[name], parts[name]) for name in whole)


def test_the_policy_that_was_paid_most_is_kept(tiny, tmp_path):
    run = PPO(settings(tmp_path, tiny, keep=1))
    for update, paid in ((1, 5.0), (2, 9.0), (3, 7.0)):
        run.update = update
        run.log.append({"update": update, "steps": run.steps, "return": paid, "ends": 2, "real_return": None})
        run.save()
    assert load_network(tmp_path / "policy.safetensors")[1]["steps"] == 2 * run.settings.batch


def test_another_run_is_not_written_over(tiny, tmp_path):
    PPO(settings(tmp_path, tiny, total_steps=32)).run()
    with pytest.raises(ValueError, match="other settings"):
        PPO(settings(tmp_path, tiny, total_steps=32, gamma=0.5))


def test_a_box_world_is_learned_by_the_same_code(tmp_path):
    world = make_world(tmp_path / "box", actions=ContinuousActions((-1.0, 0.0), (1.0, 1.0)))
    run = PPO(settings(tmp_path / "run", world, mirror="-1 1"))
    before = [p.clone() for p in run.network.parameters()]
    run.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))


def test_soft_ends_are_the_worlds_probabilities(tiny, tmp_path):
    run = PPO(settings(tmp_path, tiny, soft_ends=True))
    run.begin()
    rewards, _, ends, over = run.play(np.zeros(4, np.int64))
    assert rewards.shape == (4,)
    assert ((ends > 0) & (ends < 1)).all()
    assert over.dtype == torch.bool


@pytest.mark.parametrize(("soft", "added"), [(True, [-2.5, -0.5, 0.0]), (False, [-10.0, 0.0, 0.0])])
def test_soft_changes_are_those_that_the_world_expected(tiny, tmp_path, soft, added):
    run = PPO(settings(tmp_path, tiny, soft_changes=soft, shape="energy=0.5"))
    run.begin()
    run.variables = {"energy": np.full(3, 100.0)}
    now, expected = np.array([80.0, 100.0, 60.0]), np.array([95.0, 99.0, 90.0])
    infos = {"variables": {"energy": now}, "expected_variables": {"energy": expected}}
    assert run.changes(infos, np.array([False, False, True])).tolist() == added  # an end counts as an end alone
    assert run.variables["energy"].tolist() == now.tolist()


def test_a_guard_cuts_training_episodes_where_the_dream_is_doubtful(tiny, tmp_path):
    doubtful = PPO(settings(tmp_path / "a", tiny, guard="renoise", guard_bound=1e-9, num_steps=3, horizon=6))
    doubtful.begin()
    _, _, ends, over = doubtful.play(np.zeros(4, np.int64))
    assert over.all()
    assert doubtful.tally.cuts == 4 - int(ends.sum())
    trusting = PPO(settings(tmp_path / "b", tiny, guard="renoise", guard_bound=1e9, num_steps=3, horizon=6))
    trusting.begin()
    assert trusting.play(np.zeros(4, np.int64))[3].sum() == trusting.tally.ends


def test_the_written_policy_has_the_running_mean_of_the_weights(tiny, tmp_path):
    run = PPO(settings(tmp_path / "run", tiny, average=0.9))
    batch = run.begin() or run.collect(tqdm(disable=True))
    first, mean = run.network.policy.bias.detach().clone(), run.averaged.policy.bias.detach().clone()
    assert torch.equal(first, mean)
    for rows in (torch.arange(16), torch.arange(16, 32)):
        run.gradient(batch, rows)
        mean = 0.9 * mean + 0.1 * run.network.policy.bias.detach()
    assert torch.allclose(run.averaged.policy.bias, mean, atol=1e-7)
    assert not torch.allclose(run.network.policy.bias, mean, atol=1e-5)
    run.log = [{"steps": 0, "return": 0.0, "ends": 0, "real_return": None}]
    run.save()
    assert torch.equal(load_network(tmp_path / "run" / "policy.safetensors")[0].policy.bias, run.averaged.policy.bias)


class Bright(gym.Env):
    """Pays 1 for the action that the picture shows: dark 0, bright 1. What a learner must be able to learn."""

    observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, max_episode_steps: int | None = None):
        self.limit, self.steps = max_episode_steps or 8, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.picture(), {"variables": {}}

    def step(self, action):
        reward = float(int(action) == self.answer)
        self.steps += 1
        return self.picture(), reward, False, self.steps >= self.limit, {"variables": {}}

    def picture(self):
        self.answer = int(self.np_random.integers(2))
        return np.full((32, 32, 3), 40 + 160 * self.answer, np.uint8)


@pytest.mark.parametrize(("passes", "denoising"), [(None, 2), (1, 1)])
def test_dreams_take_as_many_passes_as_are_asked_for(tiny, tmp_path, passes, denoising):
    run = PPO(settings(tmp_path, tiny, passes=passes))
    assert len(run.envs.unwrapped.engine.passes) == denoising + 1  # the last one writes the history


def test_it_learns_what_a_picture_says(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ppo, "real_env", lambda world, max_episode_steps: Bright(max_episode_steps))
    run = PPO(
        settings(
            tmp_path,
            tiny,
            real=True,
            total_steps=1600,
            num_steps=25,
            reward_scale=1.0,
            gamma=0.0,
            horizon=8,
            learning_rate=2e-3,
        )
    )
    run.run()
    paid = [row["return"] / (4 * 25) for row in run.log]
    assert paid[0] < 0.75
    assert np.mean(paid[-3:]) > 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out"),
        (["--out", "x", "--env", "inferix_env/Nowhere-v0"], "no Gymnasium env"),
        (["--out", "x", "--env", "inferix_env/World-v0"], "--world"),
        (["--out", "x", "--num-envs", "0"], "--num-envs 0"),
        (["--out", "x", "--shape", "health"], "health=0.05"),
        (["--out", "x", "--average", "1"], "--average 1"),
        (["--out", "x", "--mirror", "left"], "--mirror"),
        (["--out", "x", "--real", "--starts", "midway"], "openings"),
        (["--out", "x", "--real", "--soft-ends"], "for dreams"),
        (["--out", "x", "--real", "--guard", "latent", "--guard-bound", "2"], "watches dreams"),
        (["--out", "x", "--guard", "latent"], "--guard-bound"),
        (["--out", "x", "--real", "--passes", "1"], "--passes"),
    ],
)
def test_wrong_settings_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ppo.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_card_of_a_shipped_policy_is_beside_it():
    for path in (Path(inferix_env.__file__).parent / "worlds").glob("*/policy.safetensors"):
        _, card = load_network(path)
        assert json.loads(path.with_suffix(".json").read_text())["settings"] == card["settings"]
