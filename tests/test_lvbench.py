"""LV-Bench: manifests, prompting through captions, results that are kept, runs that are stopped and go on, workers."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from examples.published_checkpoint import write_tiny
from inferix_env.env import WorldSimEnv
from inferix_env.evaluation.__main__ import main
from inferix_env.evaluation.lvbench import Caption, Config, command, measure, read_manifest
from inferix_env.evaluation.lvbench.prompting import caption_at, dream
from inferix_env.evaluation.lvbench.workers import WorkerLost, spread
from inferix_env.evaluation.videos import measure_video
from inferix_env.record import Recorder

CAPTIONS = [
    {"start": 0, "end": 0.6, "caption": "a red fox"},
    {"start": 0.6, "end": 1.5, "caption": "the fox runs into the snow"},
]


def moving(count: int, seed: int, colour: Sequence[int]) -> np.ndarray:
    """A patch over a textured ground, uint8 [count, 32, 48, 3]."""
    ground = np.random.default_rng(seed).integers(60, 120, (8, 12, 3), dtype=np.uint8)
    frames = np.repeat(ground.repeat(4, axis=0).repeat(4, axis=1)[None], count, axis=0)
    for t, frame in enumerate(frames):
        frame[8:20, 2 + t % 34 : 12 + t % 34] = colour
    return frames


def write_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Recorder(path, frames.shape[1:3], 16, scale=1) as recorder:
        recorder.add(frames)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small LV-Bench: videos of two classes, one of which cannot be read and one of which is too short."""
    folder = tmp_path_factory.mktemp("lvbench")
    entries = []
    for i, (label, count) in enumerate([("human", 40), ("human", 42), ("animal", 40), ("animal", 3), ("human", 40)]):
        path = f"{label}/{i}.mp4"
        write_video(folder / path, moving(count, i, (220, 40 + 30 * i, 60)))
        entries.append({"video": path, "class": label, "split": "eval", "captions": CAPTIONS})
    (folder / "human" / "4.mp4").write_bytes(b"not a video")
    entries.append({"video": "gone.mp4", "class": "animal", "split": "eval", "captions": CAPTIONS})
    entries.append({"video": "other.mp4", "class": "animal", "split": "train", "captions": CAPTIONS})
    (folder / "manifest.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict:
    checkpoint = write_tiny(tmp_path_factory.mktemp("world"))
    return {"world": str(checkpoint), "preset": "self-forcing", "size": (32, 48), "codec": "preview"}


def config(data: Path, out: Path, **settings) -> Config:
    return Config(**{"manifest": data / "manifest.json", "out": out, "chunks": 4, **settings})


def kept(out: Path) -> dict[str, bytes]:
    """What a run leaves: its summary and every video's result."""
    files = [out / "summary.json", *sorted((out / "results").iterdir())]
    return {path.name: path.read_bytes() for path in files}


# Manifests.


def test_json_json_lines_and_csv_say_the_same(tmp_path):
    entries = [
        {"video": "a/one.mp4", "class": "human", "split": "train", "captions": CAPTIONS[::-1]},
        {"path": "two.mp4", "category": "animal", "subset": "test", "segments": [
            {"start_time": 0, "end_time": 3, "text": "a cat,\nasleep"}]},
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps({"videos": entries}))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "class", "split", "start", "end", "caption"])
        rows.writerow(["a/one.mp4", "human", "train", 0, 0.6, "a red fox"])
        rows.writerow(["a/one.mp4", "human", "train", 0.6, 1.5, "the fox runs into the snow"])
        rows.writerow(["two.mp4", "animal", "test", 0, 3, "a cat,\nasleep"])
    read = [read_manifest(tmp_path / f"a.{ending}") for ending in ("json", "jsonl", "csv")]
    assert read[0] == read[1] == read[2]
    one, two = read[0]
    assert (one.key, one.label, one.split) == ("00000-one", "human", "train")
    assert [caption.start for caption in one.captions] == [0, 0.6]
    assert (two.split, two.captions) == ("eval", (Caption(0, 3, "a cat,\nasleep"),))


def test_without_splits_a_fifth_of_each_class_is_for_evaluation_whatever_the_order(tmp_path):
    entries = [{"video": f"{i}.mp4", "class": "human" if i < 40 else "animal"} for i in range(50)]
    for name, order in (("a", entries), ("b", entries[::-1])):
        (tmp_path / f"{name}.json").write_text(json.dumps(order))
    first, second = (
        {(v.path, v.label) for v in read_manifest(tmp_path / f"{n}.json") if v.split == "eval"} for n in "ab"
    )
    assert first == second
    assert sum(label == "human" for _, label in first) == 8
    assert sum(label == "animal" for _, label in first) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "manifest m.json: Expecting value"),
        ("[]", "it lists no videos"),
        ('{"clips": []}', "expected a list of objects"),
        ('[{"class": "human"}]', "video 1 has no video: it has class"),
        ('[{"video": "a.mp4"}, {"video": "a.mp4"}]', r"a\.mp4 is listed twice"),
        ('[{"video": "a.mp4", "split": "half"}]', "has the split 'half': expected one of train"),
        ('[{"video": "a.mp4", "split": "eval"}, {"video": "b.mp4"}]', r"b\.mp4 has the split None"),
        ('[{"video": "a.mp4", "captions": "a fox"}]', "captions are 'a fox': expected a list"),
        ('[{"video": "a.mp4", "captions": [{"start": 2, "end": 1, "caption": "x"}]}]', "caption 1: from 2 to 1 s"),
        ('[{"video": "a.mp4", "captions": [{"start": "soon", "end": 1, "caption": "x"}]}]', "time 'soon'"),
        ('[{"video": "a.mp4", "captions": [{"start": 0, "end": 1}]}]', "caption 1 has no caption"),
        ('[{"video": "a.mp4", "captions": ["a fox"]}]', "expected start, end and caption"),
    ],
)
def test_a_wrong_manifest_says_where_and_what(tmp_path, text, reason):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_manifest(tmp_path / "m.json")


def test_other_wrong_manifests(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_manifest(tmp_path / "m.json")
    (tmp_path / "m.txt").touch()
    with pytest.raises(ValueError, match=r"ends in \.json, \.jsonl, \.csv"):
        read_manifest(tmp_path / "m.txt")
    (tmp_path / "m.csv").write_text("video,class,split,start,end,caption\na.mp4,human\n")
    with pytest.raises(ValueError, match="row 2: expected as many cells"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "n.csv").write_text("video,class\na.mp4,human\na.mp4,animal\n")
    with pytest.raises(ValueError, match="another class than in its first row"):
        read_manifest(tmp_path / "n.csv")


# Prompting.


def test_the_caption_that_holds_is_the_last_that_has_begun():
    captions = [Caption(1, 3, "one"), Caption(3, 5, "two")]
    assert [caption_at(captions, t) for t in (0, 1, 2.9, 3, 9)] == ["one", "one", "one", "two", "two"]


class Prompted:
    """An env of 16 frames a second and 4 a step that says what it was told."""

    def __init__(self):
        self.told: list[str] = []
        self.world_spec = type("Spec", (), {"fps": 16.0})

    def reset(self, seed, options):
        self.told.append(options["prompt"])
        return None, {"frames": np.zeros((1, 2, 2, 3), np.uint8)}

    def step(self, action):
        self.told.append(action)
        return None, 0.0, False, False, {"frames": np.zeros((4, 2, 2, 3), np.uint8)}


def test_each_block_is_prompted_by_what_holds_when_it_begins():
    env, captions = Prompted(), [Caption(0, 0.5, "one"), Caption(0.5, 1.1, "two")]
    blocks = list(dream(env, captions, 18, seed=0))  # type: ignore[arg-type]
    assert [len(block) for block in blocks] == [1, 4, 4, 4, 4, 1]  # they begin at frames 0, 1, 5, 9, 13, 17
    assert env.told == ["one", "one", "one", "two", "two", "two"]


def test_a_text_world_goes_through_the_captions_without_a_cut(world, tmp_path, data):
    result = measure(config(data, tmp_path / "out", limit=1, **world))
    assert result["total"]["read"] == 1
    path = tmp_path / "out" / "videos" / "00000-0.mp4"
    assert measure_video(path) == (24, (32, 48))  # 1.5 s of 16 frames
    env = WorldSimEnv(**world)
    _, info = env.reset(seed=0, options={"prompt": "a red fox"})
    assert info["prompt"] == "a red fox"
    *_, info = env.step("the fox runs into the snow")  # the first block is 9 frames: 0.56 s
    env.close()
    assert info["prompt"] == "the fox runs into the snow"


# Runs.


def test_videos_that_are_there_are_scored_by_class_and_in_total(data, tmp_path):
    summary = measure(config(data, tmp_path / "out"))
    assert (summary["total"]["videos"], summary["total"]["read"]) == (6, 3)
    assert {label: part["read"] for label, part in summary["classes"].items()} == {"animal": 1, "human": 2}
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "results").iterdir())]
    for name in ("clarity", "subject"):
        for key, of in (("score", lambda s: s["whole"]), ("normalised", lambda s: s["drift"]["normalised"])):
            values = [of(result["scores"][name]) for result in results if result["reason"] is None]
            assert summary["total"][name][key]["mean"] == pytest.approx(np.mean(values))
            assert summary["total"][name][key]["count"] == 3
            assert summary["classes"]["human"][name][key]["mean"] == pytest.approx(np.mean(values[:2]))
    reasons = {row["video"]: row["reason"] for row in summary["without"]}
    assert reasons["animal/3.mp4"] == "3 frames cannot be cut into 4 chunks: expected a longer clip"
    assert reasons["human/4.mp4"].startswith("4.mp4 cannot be decoded")
    assert reasons["gone.mp4"] == "gone.mp4: there is no such file"
    assert summary["scorers"]["clarity"]["stand_in"] is True


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(data, world, tmp_path, monkeypatch):
    settings = {"longest": 1.0, "limit": 3, **world}
    whole = measure(config(data, tmp_path / "whole", **settings))
    score = command.score_clip
    calls = []

    def stopped(blocks, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            next(blocks)
            (tmp_path / "cut" / "results" / "00001-1.json.tmp").write_text("{")
            raise KeyboardInterrupt
        return score(blocks, *arguments)

    monkeypatch.setattr(command, "score_clip", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(config(data, tmp_path / "cut", **settings))
    assert [path.name for path in (tmp_path / "cut" / "results").glob("*.json")] == ["00000-0.json"]
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert measure(config(data, tmp_path / "cut", **settings)) == whole
    assert len(calls) == 4  # what was done was not done again
    left = kept(tmp_path / "cut")
    left.pop("00001-1.json.tmp", None)
    assert left == kept(tmp_path / "whole")


def test_a_folder_of_another_setting_is_left_alone(data, tmp_path):
    measure(config(data, tmp_path / "out", limit=1))
    before = kept(tmp_path / "out")
    with pytest.raises(ValueError, match="another setting \\(chunks: 4 there, 5 here\\)"):
        measure(config(data, tmp_path / "out", limit=1, chunks=5))
    assert kept(tmp_path / "out") == before


def test_more_videos_go_on_where_fewer_ended(data, tmp_path):
    measure(config(data, tmp_path / "out", limit=1))
    first = tmp_path / "out" / "results" / "00000-0.json"
    time_made = first.stat().st_mtime_ns
    summary = measure(config(data, tmp_path / "out", limit=2))
    assert summary["total"]["read"] == 2
    assert first.stat().st_mtime_ns == time_made


def test_a_video_that_was_mended_is_read_by_the_same_command(tmp_path):
    (tmp_path / "manifest.json").write_text('[{"video": "a.mp4"}]')
    (tmp_path / "a.mp4").write_bytes(b"half a download")
    assert measure(config(tmp_path, tmp_path / "out"))["total"]["read"] == 0
    write_video(tmp_path / "a.mp4", moving(40, 0, (200, 60, 60)))
    assert measure(config(tmp_path, tmp_path / "out"))["total"]["read"] == 1


def test_a_video_without_captions_costs_only_itself(world, tmp_path):
    entries = [{"video": "a.mp4", "split": "eval"}, {"video": "b.mp4", "split": "eval", "captions": CAPTIONS}]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    summary = measure(config(tmp_path, tmp_path / "out", longest=0.8, **world))
    assert summary["total"]["read"] == 1
    [row] = [row for row in summary["without"] if row["what"] == "video"]
    assert row["reason"] == "a.mp4 has no captions: there is nothing to prompt the world with"


def test_the_command_says_one_line_for_what_is_wrong(data, tmp_path, capsys):
    manifest = ["--manifest", str(data / "manifest.json"), "--out", str(tmp_path / "out")]
    for extra, reason in (
        (["--workers", "0"], "--workers 0: expected 1 or more"),
        (["--preset", "self-forcing"], "--preset self-forcing without --world"),
        (["--world", "doom-take-cover", "--videos", "."], "--videos with --world"),
        (["--world", "doom-take-cover"], "captions need a world that is steered by prompts"),
        (["--models", "subject", "--weights", str(tmp_path)], "subject by its published model needs dino-vitb16"),
        (["--split", "train", "--limit", "0"], "--limit 0"),
    ):
        assert main(["lvbench", *manifest, *extra]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert reason in line


def test_the_command_prints_a_table(data, tmp_path, capsys):
    status = main(
        ["lvbench", "--manifest", str(data / "manifest.json"), "--out", str(tmp_path / "out"), "--limit", "1"]
    )
    out = capsys.readouterr().out
    assert status == 0
    assert "1 of 1 videos read" in out
    assert "(stand-in)" in out
    assert "summary.json" in out


# Processes.


def shout(jobs: Sequence[str], worker: int) -> Iterator[str]:
    for job in jobs:
        if job == "wrong":
            raise ValueError("this job is wrong")
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        yield job.upper()


def test_one_worker_works_here():
    assert list(spread(shout, ["a", "b"], 1)) == ["A", "B"]


@pytest.mark.slow
def test_several_workers_share_the_jobs_and_their_errors_come_back():
    assert sorted(spread(shout, list("abcde"), 2)) == list("ABCDE")
    with pytest.raises(ValueError, match="this job is wrong"):
        list(spread(shout, ["a", "wrong", "b"], 2))
    with pytest.raises(WorkerLost, match=r"signal 9.*goes on"):
        list(spread(shout, ["a", "die", "b"], 2))


@pytest.mark.slow
def test_two_workers_give_what_one_gives(data, world, tmp_path):
    settings = {"longest": 1.0, "limit": 3, **world}
    one = measure(config(data, tmp_path / "one", **settings))
    assert measure(config(data, tmp_path / "two", workers=2, **settings)) == one


def command_line(data: Path, world: dict, out: Path, *extra: str) -> list[str]:
    size = [str(side) for side in world["size"]]
    asked = ["--world", world["world"], "--preset", world["preset"], "--codec", world["codec"], "--size", *size]
    where = ["--manifest", str(data / "manifest.json"), "--out", str(out), "--chunks", "4", "--limit", "4"]
    return [sys.executable, "-m", "inferix_env.evaluation", "lvbench", *asked, *where, *extra]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(data, world, tmp_path, workers):
    extra = ["--workers", str(workers)]
    subprocess.run(command_line(data, world, tmp_path / "whole", *extra), check=True, timeout=300)
    for step in (1, 2):  # killed after a video, with the next one half done
        process = subprocess.Popen(command_line(data, world, tmp_path / "cut", *extra))
        waited = time.monotonic() + 240
        while len(list((tmp_path / "cut").glob("results/*.json"))) < step and process.poll() is None:
            assert time.monotonic() < waited
            time.sleep(0.01)
        process.kill()
        process.wait(timeout=60)
    assert not (tmp_path / "cut" / "summary.json").exists()
    subprocess.run(command_line(data, world, tmp_path / "cut", *extra), check=True, timeout=300)
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(data, world, tmp_path):
    process = subprocess.Popen(command_line(data, world, tmp_path / "out", "--workers", "2"), start_new_session=True)
    while not list((tmp_path / "out").glob("results/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    waited = time.monotonic() + 30
    while members(process.pid) and time.monotonic() < waited:
        time.sleep(0.1)
    assert not members(process.pid)


def members(session: int) -> list[int]:
    """The processes of a session that are alive (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
