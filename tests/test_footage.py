"""Footage: clips and action logs become the rows they say, and what does not fit is named by file and line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import inferix_env  # noqa: F401  (registers the ids)
from engine.actions import BinaryActions, ContinuousActions, DictActions, DiscreteActions, action_spec
from engine.training import footage
from engine.training.__main__ import train
from engine.training.clip_episodes import Steps, episodes, segments
from engine.training.data import Shards
from engine.training.footage import FootageConfig, convert, read_footage, validation_starts
from inferix_env.record import Recorder
from tests.test_training import config as short_training

CONFIG = FootageConfig(height=16, width=24, fps=10.0, validation=0.34)


def film(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)


def write_pngs(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i:04d}.png")


def write_video(path: Path, frames: np.ndarray, fps: float = 10.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Recorder(path, frames.shape[1:3], fps, scale=1) as recorder:
        recorder.add(frames)


def write_csv(path: Path, header: str, rows) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three clips of 6 frames as PNGs: a and b for training, c for validation (its name's hash says so)."""
    for seed, name in enumerate("abc"):
        write_pngs(tmp_path / "clips" / name, film(6, seed))
        rows = [("left", 1), ("none", 0), ("left", 0), ("right", 0.5), ("none", 0)]
        write_csv(tmp_path / "clips" / f"{name}.csv", "action,reward", rows)
    return tmp_path / "clips"


def shards(folder: Path, out: Path, split: str = "train", **changes) -> Shards:
    convert(replace(CONFIG, **changes), folder, out)
    return Shards(out, split)


def test_rows_are_what_was_seen_and_what_led_to_it(folder, tmp_path):
    seen = shards(folder, tmp_path / "data")
    clips = [0, 1, 2]
    starts = validation_starts(CONFIG, read_footage(CONFIG, folder))
    assert sorted(starts) == [0, 6, 6]
    kept = [clip for clip in clips if starts[clip]]
    assert np.array_equal(seen.frames(0, 12), np.concatenate([film(6, clip) for clip in kept]))
    assert seen.column("actions").tolist() == [0, 1, 0, 1, 2, 0] * 2
    assert seen.column("actions").dtype == np.int64
    assert seen.column("rewards").tolist() == [0, 1, 0, 0, 0.5, 0] * 2
    assert seen.column("ends").tolist() == [0, 0, 0, 0, 0, 2] * 2
    assert seen.column("valid").all()
    assert seen.starts.tolist() == [0, 6, 12]
    assert action_spec(seen.metadata["actions"]) == DiscreteActions(3, ("none", "left", "right"))
    assert seen.metadata["fps"] == 10
    assert {k: seen.metadata["config"][k] for k in ("height", "width", "frame_skip")} == {
        "height": 16,
        "width": 24,
        "frame_skip": 1,
    }
    [left] = [clip for clip in clips if not starts[clip]]
    assert np.array_equal(Shards(tmp_path / "data", "validation").frames(0, 6), film(6, left))


def test_a_row_a_frame_and_a_row_a_step_say_the_same(tmp_path):
    """7 frames, 3 a step: kept 0, 3 and 6. Most of a step's rows say its action, rewards add up."""
    left, none = ("left", 1), ("none", 2)
    logs = {"frames": [left, left, none, none, none, left, left], "less": [left, left, none, none, none, left]}
    logs |= {"steps": [("left", 4), ("none", 5), ("left", 1)], "fewer": [("left", 4), ("none", 5)]}
    for name, rows in logs.items():
        write_pngs(tmp_path / name / "a", film(7))
        write_pngs(tmp_path / name / "b", film(7, 1))
        for clip in "ab":
            write_csv(tmp_path / name / f"{clip}.csv", "action,reward", rows)
        made = shards(tmp_path / name, tmp_path / f"{name}-data", frame_skip=3)
        assert made.column("actions").tolist() == [0, 1, 0]
        assert made.column("rewards").tolist() == [0, 4, 5]
        assert np.array_equal(made.frames(0, 3)[1], film(7)[3]) or np.array_equal(made.frames(0, 3)[1], film(7, 1)[3])


def test_videos_with_the_logs_of_rollouts(tmp_path):
    from agents import rollout

    env = ["--env", "tests.synthetic:tests/MovingSquare-v0", "--policy", "script:1*3, 2*2, 0", "--episodes", "3"]
    assert rollout.main([*env, "--max-steps", "9", "--out", str(tmp_path / "clips")]) == 0
    made = shards(tmp_path / "clips", tmp_path / "data", height=32, width=32)
    assert made.metadata["fps"] == 10
    assert made.column("actions").tolist() == [0, 1, 1, 1, 2, 2, 0, 1, 1, 1] * 2
    assert made.column("rewards").tolist() == [0, *[1] * 9] * 2
    truth = [np.load(tmp_path / "clips" / f"episode-00{i}.npz")["frames"] for i in range(3)]
    lossy = made.frames(0, 10).astype(int)
    assert min(np.abs(lossy - frames).mean() for frames in truth) < 6
    assert action_spec(made.metadata["actions"]) == DiscreteActions(3)


@pytest.mark.parametrize(
    ("header", "rows", "spec", "expected"),
    [
        ("left,fire", [(1, 0), (0, 1)], BinaryActions(2, ("left", "fire")), [[1, 0], [0, 1]]),
        (
            "steer,gas,time",
            [(-0.5, 0.2, 7), (0.25, 0, 8)],
            ContinuousActions((-0.5, 0.0), (0.5, 0.2), ("steer", "gas")),
            [[-0.5, 0.2], [0.25, 0]],
        ),
        (
            "fire,aim,gear,terminated",
            [(1, 0.5, "first", 0), (0, -1, "none", 0)],
            DictActions(
                (
                    ("keys", BinaryActions(1, ("fire",))),
                    ("axes", ContinuousActions((-1.0,), (1.0,), ("aim",))),
                    ("gear", DiscreteActions(2, ("none", "first"))),
                )
            ),
            [[1, 0.5, 1], [0, -1, 0]],
        ),
        ("action", [(2,), (0,)], DiscreteActions(3), [2, 0]),
        ("action", [(0.5,), (-2,)], ContinuousActions((-2.0,), (2.0,), ("action",)), [[0.5], [-2]]),
    ],
)
def test_columns_are_keys_axes_words_or_numbers(tmp_path, header, rows, spec, expected):
    for seed, name in enumerate("ab"):
        write_pngs(tmp_path / "clips" / name, film(3, seed))
        write_csv(tmp_path / "clips" / f"{name}.csv", header, rows)
    made = shards(tmp_path / "clips", tmp_path / "data")
    assert action_spec(made.metadata["actions"]) == spec
    assert np.allclose(made.column("actions")[1:], expected)
    encoded = spec.encode_rows(made.column("actions"))
    assert encoded.shape == (3, spec.width)
    assert (np.abs(encoded) <= 1).all()


def test_keys_of_a_step_are_those_down_in_half_of_its_rows(tmp_path):
    for seed, name in enumerate("ab"):
        write_pngs(tmp_path / "clips" / name, film(4, seed))
        rows = [(1, 0, 0.5), (0, 0, 1), (1, 1, 0), (0, 1, 0)]
        write_csv(tmp_path / "clips" / f"{name}.csv", "left,fire,aim", rows)
    made = shards(tmp_path / "clips", tmp_path / "data", frame_skip=2)
    assert made.column("actions")[1].tolist() == [1, 0, 0.75]


def test_actions_of_jsonl_may_be_lists_or_objects(tmp_path):
    lines = [{"header": {}}, {"action": {"aim": [0.5, 0.7], "fire": True}}, {"action": {"aim": [-1, 0], "fire": False}}]
    for seed, name in enumerate("ab"):
        write_pngs(tmp_path / "clips" / name, film(3, seed))
        (tmp_path / "clips" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    spec = action_spec(shards(tmp_path / "clips", tmp_path / "data").metadata["actions"])
    aim = ContinuousActions((-1.0, 0.0), (1.0, 0.7), ("aim.0", "aim.1"))
    assert spec == DictActions((("keys", BinaryActions(1, ("fire",))), ("axes", aim)))


def test_one_log_for_all_clips_and_named_actions(folder, tmp_path):
    rows = [(clip.stem, 1 if i else 0) for clip in folder.glob("*.csv") for i in range(6)]
    for path in folder.glob("*.csv"):
        path.unlink()
    write_csv(folder / "actions.csv", "clip,action", rows)
    made = shards(folder, tmp_path / "data", action_names=("stay", "go", "jump"))
    assert action_spec(made.metadata["actions"]) == DiscreteActions(3, ("stay", "go", "jump"))
    assert made.column("actions")[:6].tolist() == [0, 0, 1, 1, 1, 1]


def test_chosen_columns_are_the_actions(tmp_path):
    for seed, name in enumerate("ab"):
        write_pngs(tmp_path / "clips" / name, film(3, seed))
        write_csv(tmp_path / "clips" / f"{name}.csv", "left,fps,right", [(1, 59, 0), (0, 60, 1)])
    spec = action_spec(shards(tmp_path / "clips", tmp_path / "data", columns=("left", "right")).metadata["actions"])
    assert spec == BinaryActions(2, ("left", "right"))


def cut(ends: list[int], kept: int, limit: int = 99) -> list[tuple[int, int, bool]]:
    return list(segments(kept, np.array(ends, np.uint8), limit))


def test_ends_cut_clips_into_episodes():
    assert cut([0, 0, 0, 0], 5) == [(0, 4, False)]
    assert cut([0, 0, 0, 1], 5) == [(0, 4, False)]  # the last frame shows the end
    assert cut([0, 0, 0, 0, 1], 5) == [(0, 4, True)]  # no frame shows it
    assert cut([0, 1, 0, 0], 5) == [(0, 1, True), (2, 4, False)]  # the frame after it is another episode's
    assert cut([0, 2, 0, 0], 5) == [(0, 1, False), (2, 4, False)]
    assert cut([0] * 6, 7, limit=3) == [(0, 3, False), (3, 6, False)]
    assert cut([1, 0, 0], 4) == [(0, 0, True), (1, 3, False)]
    assert cut([0], 1) == [(0, 0, False)]


def test_rows_of_an_end_without_a_picture():
    steps = Steps(np.arange(5.0)[:, None] + 1, np.arange(5.0), np.array([0, 1, 0, 0, 1], np.uint8))
    (at, first), (then, second) = episodes(iter(film(5)), 5, steps, DiscreteActions(6), 99)
    assert (at, then) == (0, 2)
    assert (first.actions.tolist(), first.rewards.tolist()) == ([0, 1, 2], [0, 0, 1])
    assert (first.ends.tolist(), first.valid.tolist()) == ([0, 0, 1], [1, 1, 0])
    assert np.array_equal(first.frames, film(5)[[0, 1, 1]])
    assert (second.actions.tolist(), second.ends.tolist()) == ([0, 3, 4, 5], [0, 0, 0, 1])
    assert second.valid.tolist() == [1, 1, 1, 0]
    assert np.array_equal(second.frames, film(5)[[2, 3, 4, 4]])


def test_a_clip_is_read_no_further_than_an_episode():
    read = []
    frames = (read.append(i) or frame for i, frame in enumerate(film(30)))
    made = episodes(frames, 30, Steps(np.zeros((29, 1)), np.zeros(29), np.zeros(29, np.uint8)), DiscreteActions(2), 10)
    assert len(next(made)[1]) == 11
    assert len(read) == 11
    assert [len(episode) for _, episode in made] == [11, 10]
    assert len(read) == 30


def test_a_single_clip_gives_its_last_part_for_validation_and_shards_stay_small(tmp_path):
    write_pngs(tmp_path / "clips" / "only", film(60))
    write_csv(tmp_path / "clips" / "only.csv", "action", [(i % 2,) for i in range(60)])
    settings = {"validation": 0.2, "max_episode_steps": 10, "shard_frames": 20}
    made = shards(tmp_path / "clips", tmp_path / "data", **settings)
    assert len(made.paths) == 3
    assert max(np.diff(made.offsets)) == 22
    held_out = Shards(tmp_path / "data", "validation")
    assert np.array_equal(held_out.frames(0, 12)[0], film(60)[48])
    assert len(held_out) == 13  # 12 frames, of which one closes an episode of 10 steps and opens the next


@pytest.mark.slow
def test_footage_trains_a_world_that_plays(tmp_path):
    """From videos and CSV to `gym.make`: the square on its floor, with keys."""
    for clip in range(3):
        env = gym.make("tests.synthetic:tests/MovingSquare-v0", render_mode="rgb_array")
        env.reset(seed=clip)
        frames, rows = [env.render()], []
        for action in [0, *[1, 2, 0, 2] * 5]:
            _, reward, *_ = env.step(action)
            frames.append(env.render())
            rows.append((int(action == 1), int(action == 2), reward))
        write_video(tmp_path / "clips" / f"clip{clip}.mp4", np.stack(frames), 20)
        write_csv(tmp_path / "clips" / f"clip{clip}.csv", "left,right,reward", rows)
    convert(replace(CONFIG, height=32, width=32), tmp_path / "clips", tmp_path / "data")
    out = tmp_path / "world"
    train(short_training(out, data=tmp_path / "data"))
    env = gym.make("inferix_env/World-v0", world=str(out))
    env.reset(seed=0)
    assert env.unwrapped.world_spec.fps == 20
    assert env.action_space == gym.spaces.MultiBinary(2)
    frame, reward, *_ = env.step(np.array([1, 0], np.int8))
    assert frame.shape == (32, 32, 3)
    assert np.isfinite(reward)
    card = json.loads((out / "world.json").read_text())
    assert card["data"]["footage"] == "clips"


def lines_of(path: Path, change) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: (f / "b.csv").unlink(), r"clip \S+/b has no actions: expected b.csv or b.jsonl beside it"),
        (
            lambda f: lines_of(f / "b.csv", lambda x: x[:-2]),
            r"/b has 6 frames, \S+b.csv has 3 rows: expected 6, one fo",
        ),
        (lambda f: lines_of(f / "b.csv", lambda x: [*x[:-1], "up,x"]), r"b.csv, line 6: column 'reward' is 'x'"),
        (lambda f: lines_of(f / "b.csv", lambda x: [*x[:2], "left", *x[3:]]), r"b.csv, line 3: 1 values for 2 columns"),
        (lambda f: lines_of(f / "b.csv", lambda x: x[:1]), r"b.csv holds no row"),
        (lambda f: lines_of(f / "b.csv", lambda x: ["move,reward", *x[1:]]), r"b.csv has the actions \['move'\]"),
        (
            lambda f: lines_of(f / "a.csv", lambda x: ["time,reward", *x[1:]]),
            r"a.csv has the columns .*expected `action`",
        ),
        (lambda f: (f / "b.jsonl").write_text("{}"), r"two action logs, b.csv and b.jsonl"),
        (lambda f: (f / "b" / "0003.png").write_bytes(b"no picture"), r"picture \S+0003.png cannot be read"),
        (
            lambda f: Image.fromarray(film(1)[0][:8]).save(f / "b" / "0003.png"),
            r"clip \S+/b, frame 3: 24x8 pixels, the frames before have 24x16",
        ),
        (
            lambda f: (rename(f, "b", "b0"), rename(f, "b.csv", "b0.csv"), (f / "b.mp4").write_bytes(b"x")),
            r"b.mp4 cannot",
        ),
        (lambda f: write_video(f / "a.mp4", film(2)), r"clips \['a'\] .* have the same name"),
        (lambda f: [rename(f, f"{n}.csv", f"{n}.txt") for n in "abc"], r"a has no actions"),
        (
            lambda f: (rename(f, "b.csv", "actions.csv"), (f / "a.csv").unlink()),
            r"actions.csv has no column `clip`",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(folder, tmp_path, spoil, problem):
    spoil(folder)
    with pytest.raises(ValueError, match=problem):
        convert(CONFIG, folder, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_a_video_that_changes_its_mind_is_named(tmp_path):
    """Clips of other rates, damaged ones, and ones whose rate nothing says."""
    frames = film(12)
    for name, fps in (("a", 10.0), ("b", 20.0)):
        write_video(tmp_path / "clips" / f"{name}.mp4", frames, fps)
        write_csv(tmp_path / "clips" / f"{name}.csv", "action", [(0,)] * 12)
    with pytest.raises(ValueError, match=r"b.mp4 has 20 frames a second, \S+a.mp4 has 10"):
        read_footage(CONFIG, tmp_path / "clips")
    write_pngs(tmp_path / "pngs" / "a", frames)
    write_csv(tmp_path / "pngs" / "a.csv", "action", [(0,)] * 12)
    with pytest.raises(ValueError, match="does not say how many frames a second it has: give --fps"):
        read_footage(replace(CONFIG, fps=None), tmp_path / "pngs")


@pytest.mark.parametrize(
    ("header", "values", "problem"),
    [
        ("action", ["0", "1", "left"], r"line 4: column 'action' is 'left': expected a number"),
        ("action", ["left", "1", "up"], None),
        ("left", ["0", "1", "nan"], r"line 4: column 'left' is 'nan': expected a number"),
        ("action,terminated", ["0,0", "1,maybe", "1,0"], r"line 3: column 'terminated' is 'maybe': expected true or"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path, header, values, problem):
    for seed, name in enumerate("ab"):
        write_pngs(tmp_path / "clips" / name, film(3, seed))
        (tmp_path / "clips" / f"{name}.csv").write_text("\n".join([header, *values]))
    if problem is None:
        read_footage(CONFIG, tmp_path / "clips")
    else:
        with pytest.raises(ValueError, match=problem):
            read_footage(CONFIG, tmp_path / "clips")


def test_names_and_columns_that_do_not_fit(folder):
    with pytest.raises(ValueError, match=r"a.csv, line 2: column 'action' is 'left': expected one of \['none', 'up'\]"):
        read_footage(replace(CONFIG, action_names=("none", "up")), folder)
    with pytest.raises(ValueError, match=r"a.csv has no columns \['jump'\]: it has \['action', 'reward'\]"):
        read_footage(replace(CONFIG, columns=("jump",)), folder)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["footage", *map(str, arguments)])
        try:
            return footage.main()
        except SystemExit as error:
            return error.code

    settings = ["--height", 16, "--width", 24, "--fps", 10]
    assert run(folder, tmp_path / "data", *settings) is None
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'data'}: 12 frames to train on, 6 to validate"
    again = run(folder, tmp_path / "data", *settings)
    assert again == f"error: {tmp_path / 'data'} holds data already: choose another folder, or remove it"
    assert str(run(tmp_path / "none", tmp_path / "more")).startswith("error: no folder")


def test_a_damaged_video_is_named(tmp_path):
    for seed, name in enumerate("ab"):
        write_video(tmp_path / "clips" / f"{name}.mp4", film(40, seed))
        write_csv(tmp_path / "clips" / f"{name}.csv", "action", [(i % 2,) for i in range(40)])
    path = tmp_path / "clips" / "b.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=r"b.mp4.* (cannot be|could be read of|rows)"):
        convert(CONFIG, tmp_path / "clips", tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.safetensors"))
