"""Rollouts: same seed same files, replays that notice a changed log, and refusals before anything is written."""

import json
import os
import signal
from types import SimpleNamespace

import av
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from agents import rollout
from agents.episodes import action_from, columns
from agents.policies import RandomPolicy, ScriptPolicy, StickyPolicy, make_policy
from engine import ContinuousActions
from inferix_env.logs import plain
from tests.worlds import make_world

SPACES = [
    gym.spaces.Discrete(7, start=2),
    gym.spaces.Box(-1, 1, (3,)),
    gym.spaces.MultiDiscrete([3, 4, 5]),
    gym.spaces.Dict(go=gym.spaces.Discrete(5), look=gym.spaces.Box(-1, 1, (2,))),
    gym.spaces.Tuple((gym.spaces.Discrete(5), gym.spaces.MultiBinary(4))),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), end_bias=-80.0)


@pytest.fixture(scope="module")
def two_frame_world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), end_bias=-80.0, block=2)


@pytest.fixture
def play(world, tmp_path):
    """Run the command in the tiny world; returns its exit status."""

    def command(out: str, *arguments: object, world=world) -> int:
        first = ["--env", "inferix_env/World-v0", "--world", world, "--max-steps", 6, "--out", tmp_path / out]
        return rollout.main([str(a) for a in [*first, *arguments]])

    return command


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def num_frames(path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def drawn(policy, seed, count=12) -> list:
    policy.reset(seed)
    return [plain(policy(None)) for _ in range(count)]


@pytest.mark.parametrize("space", SPACES, ids=repr)
@pytest.mark.parametrize("kind", [RandomPolicy, StickyPolicy])
def test_policies_follow_their_seed_alone(space, kind):
    space.seed(5)
    expected = space.sample()
    space.seed(5)
    policy = kind(space)
    first, second = drawn(policy, 3), drawn(policy, 3)
    other = drawn(kind(space), 4, count=60)
    assert first == second
    assert first != other[: len(first)]
    assert all(space.contains(action_from(action, space)) for action in other)
    assert plain(space.sample()) == plain(expected)  # the env's own generator did not move


def test_sticky_keeps_its_action_as_often_as_it_says():
    def kept(stickiness):
        actions = np.array(drawn(StickyPolicy(gym.spaces.Box(0, 1, (1,)), stickiness), 0, 2000))
        return float((actions[1:] == actions[:-1]).mean())

    assert kept(0.9) == pytest.approx(0.9, abs=0.03)
    assert kept(0.25) == pytest.approx(0.25, abs=0.04)
    assert (kept(0.0), kept(1.0)) == (0.0, 1.0)


def test_a_policy_and_an_env_of_one_seed_draw_apart():
    space = gym.spaces.Box(0, 1, (4,))
    assert not np.allclose(drawn(RandomPolicy(space), 3, 1)[0], np.random.default_rng(3).random(4))


def test_a_script_repeats_and_begins_again_at_a_reset():
    policy = ScriptPolicy([1, 2, 2])
    assert drawn(policy, 0, 7) == [1, 2, 2, 1, 2, 2, 1]
    assert drawn(policy, 9, 2) == [1, 2]


def test_make_policy(world, tmp_path):
    env = gym.make("inferix_env/World-v0", world=world)
    (tmp_path / "a.jsonl").write_text("2\n0\n")
    assert drawn(make_policy("script:right*2, left", env), 0, 4) == [2, 2, 1, 2]
    assert drawn(make_policy(f"script:{tmp_path}/a.jsonl", env), 0, 3) == [2, 0, 2]
    assert isinstance(make_policy("random", env), RandomPolicy)
    assert make_policy("sticky", env).stickiness == 0.9
    assert make_policy("sticky:0.8", env).stickiness == 0.8


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("greedy", "expected one of random, sticky"),
        ("random:3", "expected one of random, sticky"),
        ("script", "expected one of random, sticky"),
        ("sticky:often", "expected a probability"),
        ("sticky:1.5", "from 0 to 1"),
        ("sticky:nan", "from 0 to 1"),
        ("script:jump", "no action 'jump'"),
    ],
)
def test_make_policy_refuses(text, problem):
    with pytest.raises(ValueError, match=problem):
        make_policy(text, SimpleNamespace(action_space=gym.spaces.Discrete(3), unwrapped=None))


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_actions_survive_json(space):
    space.seed(0)
    for _ in range(20):
        action = space.sample()
        back = action_from(json.loads(json.dumps(plain(action))), space)
        assert data_equivalence(action, back, exact=True)


def test_columns_of_an_actions_parts():
    rows = [{"go": 1, "look": np.float32([0, 1])}, {"go": 2, "look": np.float32([2, 3])}]
    assert {k: v.tolist() for k, v in columns("actions", rows).items()} == {
        "actions.go": [1, 2],
        "actions.look": [[0, 1], [2, 3]],
    }


def test_an_episode_is_kept_whole(play, tmp_path, capsys):
    assert play("out", "--episodes", 2, "--policy", "script:right*2,left") == 0
    names = [f"episode-00{i}.{kind}" for i in (0, 1) for kind in ("jsonl", "mp4", "npz")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "summary.json"]
    header, *lines = read(tmp_path / "out/episode-001.jsonl")
    assert (header["header"]["env"], header["header"]["seed"]) == ("inferix_env/World-v0", 1)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["action"] for line in lines] == [2, 2, 1, 2, 2, 1]
    assert all(set(line["variables"]) == {"energy"} and 0 <= line["end_probability"] <= 1 for line in lines)
    with np.load(tmp_path / "out/episode-001.npz") as data:
        assert data["frames"].shape == (7, 32, 32, 3)
        assert data["frame_steps"].tolist() == list(range(7))
        assert data["actions"].tolist() == [2, 2, 1, 2, 2, 1]
        assert data["rewards"].tolist() == [line["reward"] for line in lines]
    assert num_frames(tmp_path / "out/episode-001.mp4") == 7
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [(row["length"], row["end"]) for row in summary["episodes"]] == [(6, "max_steps")] * 2
    assert summary["episodes"][1]["return"] == pytest.approx(sum(line["reward"] for line in lines))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("episodes 2, mean return ")


def test_the_frames_are_those_the_env_shows(play, world, tmp_path):
    play("out", "--no-video", "--seed", 4, "--policy", "script:right,left")
    env = gym.make("inferix_env/World-v0", world=world)
    observation, _ = env.reset(seed=4)
    seen = [observation, *(env.step(action)[0] for action in (2, 1, 2, 1, 2, 1))]
    with np.load(tmp_path / "out/episode-000.npz") as data:
        assert np.array_equal(data["frames"], seen)


def test_every_frame_of_a_block_is_kept(play, two_frame_world, tmp_path):
    assert play("out", world=two_frame_world) == 0
    lines = read(tmp_path / "out/episode-000.jsonl")[1:]
    with np.load(tmp_path / "out/episode-000.npz") as data:
        assert [line["frames"] for line in lines] == [2] * 6
        assert data["frame_steps"].tolist()[-12:] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
        assert num_frames(tmp_path / "out/episode-000.mp4") == len(data["frames"]) == len(data["frame_steps"])


def test_same_seed_same_bytes(play, tmp_path):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert play(out, "--seed", seed, "--episodes", 2, "--no-video", "--policy", "random") == 0
    for name in ("episode-000.jsonl", "episode-000.npz", "episode-001.jsonl", "episode-001.npz"):
        a, b, c = ((tmp_path / out / name).read_bytes() for out in "abc")
        assert a == b
        assert a != c
    first, second = read(tmp_path / "a/episode-001.jsonl"), read(tmp_path / "c/episode-000.jsonl")
    assert first[1:] == second[1:]  # episode i of seed s is episode 0 of seed s + i
    assert not list((tmp_path / "a").glob("*.mp4"))


def test_a_replay_finds_every_frame_equal(play, tmp_path, capsys):
    play("out", "--seed", 5, "--no-video")
    capsys.readouterr()
    assert rollout.main(["--replay", str(tmp_path / "out/episode-000.jsonl")]) == 0
    assert "every frame equal, steps 6" in capsys.readouterr().out


def tamper(lines, number, **changes):
    return [{**line, **changes} if i == number else line for i, line in enumerate(lines, start=1)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: tamper(lines, 4, action=(lines[3]["action"] + 1) % 3), "line 4: the replay differs in"),
        (lambda lines: tamper(lines, 4, reward=lines[3]["reward"] + 1e-6), "line 4: the replay differs in reward"),
        (lambda lines: tamper(lines, 6, sha256="0" * 64), "line 6: the replay differs in frames (sha256)"),
        (lambda lines: tamper(lines, 6, terminated=True), "line 6: the replay differs in terminated"),
        (lambda lines: tamper(lines, 6, variables={"energy": -1.0}), "line 6: the replay differs in variables"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4: the replay differs in"),
        (lambda lines: [{"header": {**lines[0]["header"], "seed": 6}}, *lines[1:]], "line 1: the replay differs"),
        (
            lambda lines: [{"header": {**lines[0]["header"], "sha256": "", "versions": {"torch": "1.0"}}}, *lines[1:]],
            "it was recorded with {'torch': '1.0'}",
        ),
    ],
)
def test_a_replay_notices_a_changed_log(play, tmp_path, capsys, change, problem):
    play("out", "--seed", 5, "--no-video")
    log = tmp_path / "out/episode-000.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in change(read(log))))
    capsys.readouterr()
    assert rollout.main(["--replay", str(log)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert problem in captured.err


def test_a_replay_in_another_world_differs(play, two_frame_world, tmp_path):
    play("out", "--no-video")
    log = str(tmp_path / "out/episode-000.jsonl")
    assert rollout.main(["--replay", log, "--world", str(two_frame_world)]) == 1
    assert rollout.main(["--replay", log, "--num-steps", "1"]) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: lines[1:], 'line 1: expected {"header"'),
        (lambda lines: [], 'line 1: expected {"header"'),
        (lambda lines: tamper(lines, 3, action=7), "line 3: action 7"),
        (lambda lines: tamper(lines, 3, action="left"), "line 3: action 'left'"),
        (lambda lines: [*lines, {"action": 1}], "line 8: expected a step"),
        (lambda lines: [{"header": {**lines[0]["header"], "env": "Nope-v0"}}, *lines[1:]], "Nope"),
    ],
)
def test_what_is_no_log_is_refused(play, tmp_path, capsys, change, problem):
    play("out", "--no-video")
    log = tmp_path / "out/episode-000.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in change(read(log))))
    assert rollout.main(["--replay", str(log)]) == 2
    assert problem in capsys.readouterr().err


def test_a_log_is_a_script(play, tmp_path):
    play("a", "--no-video", "--policy", "random")
    play("b", "--no-video", "--policy", f"script:{tmp_path}/a/episode-000.jsonl")
    a, b = (read(tmp_path / out / "episode-000.jsonl")[1:] for out in "ab")
    assert a == b


def test_it_refuses_to_overwrite(play, tmp_path, capsys):
    assert play("out", "--no-video", "--episodes", 2) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert play("out", "--no-video", "--seed", 9) == 2
    assert "is not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out/notes.txt").write_text("mine")
    assert play("out", "--no-video", "--seed", 9, "--force") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["episode-000.jsonl", "episode-000.npz", "notes.txt", "summary.json"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--env", "Nope-v0"], "Nope"),
        (["--env", "no.such.module:Nope-v0"], "no.such.module"),
        (["--world", "no/such/world"], "no world 'no/such/world'"),
        (["--policy", "greedy"], "expected one of random"),
        (["--policy", "script:right, jump*2"], "\n         ^\n"),
        (["--policy", "script:missing.jsonl"], "cannot be read"),
        (["--episodes", "0"], "at least 1"),
        (["--max-steps", "0"], "at least 1"),
        (["--seed", "-1"], "--seed at least 0"),
        (["--num-steps", "0"], "num_steps 0"),
        (["--device", "abacus"], "abacus"),
        (["--env", "CartPole-v1"], "takes no world"),
        (["--out", "/proc/none/such"], "cannot be written to: No such"),
        (["--out", __file__], "cannot be written to: File exists"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(play, tmp_path, capsys, arguments, problem):
    assert play("out", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert problem in captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_env_without_pictures_and_a_missing_out(tmp_path, capsys):
    assert rollout.main(["--env", "tests.synthetic:tests/MovingSquare-v0"]) == 2
    assert "--out DIR is missing" in capsys.readouterr().err
    gym.register("tests/Blind-v0", entry_point=Blind)
    assert rollout.main(["--env", "tests/Blind-v0", "--out", str(tmp_path / "out")]) == 2
    assert "shows no pictures" in capsys.readouterr().err
    gym.registry.pop("tests/Blind-v0")


class Blind(gym.Env):
    """Shows numbers only."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Box(0, 1, (3,))


def test_any_env_that_renders(tmp_path, capsys):
    arguments = ["--env", "tests.synthetic:tests/MovingSquare-v0", "--policy", "script:2*3,1*9", "--max-steps", "30"]
    assert rollout.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    header, *lines = read(tmp_path / "out/episode-000.jsonl")
    assert len(lines) == 12
    assert (lines[-1]["terminated"], "variables" in lines[-1]) == (True, False)
    assert num_frames(tmp_path / "out/episode-000.mp4") == 13
    with np.load(tmp_path / "out/episode-000.npz") as data:
        assert len(np.unique(data["frames"], axis=0)) > 3  # the square moved
    log = tmp_path / "out/episode-000.jsonl"
    assert rollout.main(["--replay", str(log)]) == 0
    more = [header, *lines, {**lines[-1], "step": 13}]
    log.write_text("".join(json.dumps(line) + "\n" for line in more))
    assert rollout.main(["--replay", str(log)]) == 1
    assert "goes on after line 13, where the episode ended" in capsys.readouterr().err


class Impatient:
    """Presses Ctrl-C while choosing an action."""

    def __init__(self, after: int, times: int = 1):
        self.after, self.times = after, times

    def reset(self, seed):
        pass

    def __call__(self, observation):
        self.after -= 1
        if self.after == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return 1


def test_ctrl_c_keeps_what_is_finished(play, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rollout, "make_policy", lambda text, env: Impatient(after=6 + 3))
    before = signal.getsignal(signal.SIGINT)
    assert play("out", "--episodes", 3) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert [len(read(tmp_path / f"out/episode-00{i}.jsonl")) - 1 for i in (0, 1)] == [6, 3]
    assert [num_frames(tmp_path / f"out/episode-00{i}.mp4") for i in (0, 1)] == [7, 4]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [(row["length"], row["end"]) for row in summary["episodes"]] == [(6, "max_steps"), (3, "interrupted")]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("stopped, the last one cut after 3 steps: episodes 2")
    assert not list((tmp_path / "out").glob("*002*"))
    assert not list((tmp_path / "out").glob(".*"))


def test_a_second_ctrl_c_stops_at_once(play, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "make_policy", lambda text, env: Impatient(after=6 + 3, times=2))
    assert play("out", "--episodes", 3, "--no-video") == 130
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["length"] for row in summary["episodes"]] == [6]
    assert not list((tmp_path / "out").glob("*001*"))


def test_a_failure_on_the_way_keeps_finished_episodes(play, tmp_path, monkeypatch, capsys):
    class Broken(Impatient):
        def __call__(self, observation):
            self.after -= 1
            return 1 if self.after else 99

    monkeypatch.setattr(rollout, "make_policy", lambda text, env: Broken(after=6 + 3))
    assert play("out", "--episodes", 3) == 1
    assert "error: action 99" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["episode-000.jsonl", "episode-000.mp4", "episode-000.npz", "summary.json"]


def test_a_guards_signal_is_logged_and_may_cut_an_episode(play, tmp_path, capsys):
    assert play("out", "--no-video", "--guard", "renoise") == 0
    lines = read(tmp_path / "out/episode-000.jsonl")[1:]
    doubts = [line["uncertainty"]["renoise"] for line in lines]
    assert len(lines) == 6
    assert all(doubt > 0 for doubt in doubts)
    assert play("cut", "--no-video", "--guard", "renoise", "--guard-bound", min(doubts) / 2) == 0
    summary = json.loads((tmp_path / "cut/summary.json").read_text())
    assert [(row["length"], row["end"]) for row in summary["episodes"]] == [(1, "truncated")]
    assert rollout.main(["--replay", str(tmp_path / "cut/episode-000.jsonl")]) == 0
    capsys.readouterr()
    assert play("bad", "--guard", "mood") == 2
    assert "expected some of ['renoise', 'latent', 'action']" in capsys.readouterr().err


def test_a_continuous_world_is_driven_by_names_and_keys(play, tmp_path, capsys):
    car = ContinuousActions((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), ("steer", "gas", "brake"))
    world = make_world(tmp_path / "car", end_bias=-80.0, actions=car)
    card = json.loads((world / "world.json").read_text())
    keys = {"left": [-1, 0, 0], "up": [0, 1, 0]}
    (world / "world.json").write_text(json.dumps({**card, "keys": keys}))
    assert play("out", "--policy", "script:left+gas*2, steer(-0.5), up+left, noop", "--max-steps", 5, world=world) == 0
    actions = [line["action"] for line in read(tmp_path / "out/episode-000.jsonl")[1:]]
    assert actions == [[-1, 1, 0], [-1, 1, 0], [-0.5, 0, 0], [-1, 1, 0], [0, 0, 0]]
    assert rollout.main(["--replay", str(tmp_path / "out/episode-000.jsonl")]) == 0
    (world / "world.json").write_text(json.dumps({**card, "keys": {"left": 1}}))
    assert play("bad", "--policy", "script:gas", world=world) == 2
    assert "the card's key for 1: " in capsys.readouterr().err
