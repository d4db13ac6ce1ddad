"""One policy in the dream and in reality: both begin with the same frames, and what is written adds up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents import same_starts
from agents.policies import ScriptPolicy
from agents.same_starts import Half, Settings, begin, compare, play_on, row_of, strip, summary
from engine import read_card
from inferix_env.env import WorldSimEnv
from inferix_env.real import real_env
from inferix_env.record import write_text
from tests.worlds import make_world

STILL, LEFT, RIGHT = 0, 1, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny world that says it was learned from the moving square."""
    folder = make_world(tmp_path_factory.mktemp("worlds") / "square", end_bias=-30.0)
    card = {**read_card(folder), "data": {"env": "tests.synthetic:tests/MovingSquare-v0", "frame_skip": 1}}
    write_text(folder / "world.json", json.dumps(card))
    return folder


def test_both_begin_with_the_same_real_frames(world):
    real, dream, policy = real_env(world), WorldSimEnv(world), ScriptPolicy([LEFT, RIGHT, RIGHT])
    frames, actions, variables = begin(real, policy, 7, 4)
    assert actions == [LEFT, RIGHT, RIGHT]
    assert variables == {"energy": [12, 11, 10, 9]}
    frame, _ = dream.reset(options={"frames": np.stack(frames), "actions": actions, "variables": variables})
    assert np.array_equal(frame, frames[-1])
    assert policy(frame) == LEFT  # the script goes on where the beginning left it
    with pytest.raises(ValueError, match="give fewer"):
        begin(real, policy, 7, 30)
    real.close()
    dream.close()


def test_an_episode_ends_with_the_env_or_at_the_limit(world):
    real = real_env(world)
    frame, _ = real.reset(seed=0)
    whole = play_on(real, ScriptPolicy([LEFT]), frame, 100)
    assert whole.ended
    assert len(whole.rewards) == 12
    assert len(whole.frames) == 13
    frame, _ = real.reset(seed=0)
    cut = play_on(real, ScriptPolicy([LEFT]), frame, 5)
    assert not cut.ended
    assert cut.rewards.tolist() == [1.0] * 5
    real.close()


def test_a_pair_is_compared_over_the_steps_of_both():
    frames = np.zeros((9, 4, 4, 3), np.uint8)
    row = row_of(3, Half(np.arange(8.0), frames, True), Half(np.ones(5), frames[:6], False))
    assert row["steps_of_both"] == 5
    assert row["real"] == {"return": 28, "steps": 8, "ended": True, "return_of_both": 10}
    assert row["dream"]["return_of_both"] == 5
    strips = strip(Half(np.ones(5), frames[:6] + 9, False), 10)
    assert (strips[0] == 9).all()
    assert (strips[-1] == 0).all()


def test_the_summary_says_how_well_a_dream_tells():
    rows = [
        {"real": {"return": r, "ended": False}, "dream": {"return": d, "ended": True}}
        for r, d in ((1, 2), (2, 4), (3, 6))
    ]
    found = summary(rows)
    assert found["correlation"] == 1
    assert found["real"]["mean"] == 2
    assert found["ended"] == {"real": 0, "dream": 3}
    assert summary(rows[:2])["correlation"] is None


def test_the_same_seeds_give_the_same_numbers(world, tmp_path):
    settings = Settings(str(world), "sticky", episodes=3, seed=5, given=2, max_steps=6, out=tmp_path / "a")
    found = compare(settings)
    written = json.loads((tmp_path / "a" / "same_starts.json").read_text())
    assert [pair["seed"] for pair in written["pairs"]] == [5, 6, 7]
    assert (tmp_path / "a" / "same_starts.png").exists()
    assert found["real"]["mean"] <= 6
    again = compare(Settings(str(world), "sticky", episodes=3, seed=5, given=2, max_steps=6, out=tmp_path / "b"))
    assert again == found


@pytest.mark.parametrize("wrong", [["--episodes", "0"], ["--world", "nowhere"], ["--policy", "driver"]])
def test_what_is_wrong_is_said_in_one_line(world, tmp_path, capsys, wrong):
    arguments = ["--world", str(world), "--policy", "sticky", "--out", str(tmp_path / "out"), *wrong]
    assert same_starts.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")]
    assert not (tmp_path / "out").exists()
