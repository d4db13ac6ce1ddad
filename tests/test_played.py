"""What a person or a script has played is logged, and plays again frame for frame."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pygame
import pytest

from agents import rollout
from agents.replay import RecordedPolicy, replay
from engine import BinaryActions
from inferix_env import viewer
from inferix_env.actions import key_code, key_map
from inferix_env.env import WorldSimEnv
from inferix_env.headless import lively_script, play_headless
from inferix_env.keys import deed
from inferix_env.logs import read_log
from inferix_env.play_config import PlayConfig
from inferix_env.session import Session
from inferix_env.viewer import Window
from tests.worlds import make_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("worlds") / "tiny", end_bias=-80.0, fps=30.0, block=2)


@pytest.fixture(scope="module")
def ending(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("worlds") / "ending")


def configured(folder: Path, out: Path, **changes) -> PlayConfig:
    return PlayConfig(world=str(folder), out=out, record=True, num_steps=1, seed=5, **changes)


def made(config: PlayConfig) -> WorldSimEnv:
    return WorldSimEnv(**config.options)


@pytest.fixture
def session(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer.start_display()
    pygame.event.clear()
    config = configured(folder, tmp_path / "out")
    session = Session(made(config), Window((32, 32), "test", 30.0, scale=4, strip=True), config)
    yield session
    session.close()


def run_until(session: Session, steps: int, episode: int = 1) -> None:
    """Play until so many steps of the n-th episode were taken."""
    deadline = time.monotonic() + 30
    while session.num_episodes < episode or session.episode.steps < steps:
        assert time.monotonic() < deadline, "it never came"
        for event in session.window.events():
            session.handle(event)
        session.tick()
        time.sleep(0.002)


def press(kind: int, key: int) -> None:
    pygame.event.post(pygame.Event(kind, key=key))


def test_a_session_is_kept_and_replays_frame_for_frame(session, tmp_path):
    run_until(session, 2)
    press(pygame.KEYDOWN, pygame.K_RIGHT)
    run_until(session, 5)
    session.reset()
    run_until(session, 1, episode=2)
    session.close()
    first, second = (tmp_path / "out" / f"tiny-{seed}-001.jsonl" for seed in (5, 6))
    log = read_log(first)
    assert log.header["make"] == {"world": session.config.world, "num_steps": 1}
    assert (log.header["seed"], log.header["policy"]) == (5, "person")
    actions = [line["action"] for line in log.lines]
    assert actions[:2] == [0, 0]
    assert 2 in actions
    assert all(line["frames"] == 2 and "variables" in line for line in log.lines)
    assert replay(first, {}) == (len(actions), None)
    assert replay(second, {})[1] is None


def test_nothing_is_kept_unless_asked(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer.start_display()
    config = PlayConfig(world=str(folder), out=tmp_path / "out")
    session = Session(made(config), Window((32, 32), "test", 30.0, scale=4, strip=True), config)
    run_until(session, 1)
    session.close()
    assert not (tmp_path / "out").exists()


def test_a_log_that_cannot_be_written_is_told(session, tmp_path):
    (tmp_path / "out").write_text("a file is in the way")
    run_until(session, 1)
    session.reset()
    run_until(session, 1, episode=2)
    assert session.note.startswith("log lost: folder")


def test_a_script_without_a_window_is_kept_too(ending, tmp_path, capsys):
    config = configured(ending, tmp_path, steps=30)
    play_headless(made(config), config, [1, 2], "headless")
    logs = sorted(tmp_path.glob("*.jsonl"))
    printed = capsys.readouterr().out.splitlines()
    assert len(logs) > 1
    assert set(map(str, logs)) <= set(printed)
    assert sum(len(read_log(path).lines) for path in logs) == 30
    assert all(replay(path, {})[1] is None for path in logs)


def test_a_cards_script_is_what_plays(tmp_path):
    env = WorldSimEnv(make_world(tmp_path / "world"))
    env.card["script"] = "right*2, a"
    assert lively_script(env, 0) == [2, 2, 1]
    env.card["script"] = "jump"
    with pytest.raises(ValueError, match="known: none, left, right, 0 to 2, a, d, noop"):
        lively_script(env, 0)


def test_what_was_played_is_a_policy(session, folder, tmp_path):
    """Same world, seed and settings: the rollout is the session again, with video and frames."""
    run_until(session, 4)
    session.close()
    log = tmp_path / "out" / "tiny-5-001.jsonl"
    made = ["--world", folder, "--num-steps", 1, "--seed", 5, "--out", tmp_path / "again", "--no-video"]
    assert rollout.main([str(a) for a in ["--policy", f"recorded:{log}", *made]]) == 0
    again, first = read_log(tmp_path / "again" / "episode-000.jsonl"), read_log(log)
    assert again.lines == first.lines
    assert again.header["sha256"] == first.header["sha256"]
    with np.load(tmp_path / "again" / "episode-000.npz") as data:
        assert data["frames"].shape[0] == 2 + 2 * len(first.lines)


def test_a_recorded_policy_plays_its_log_once(tmp_path, session):
    run_until(session, 3)
    session.close()
    log = tmp_path / "out" / "tiny-5-001.jsonl"
    policy = RecordedPolicy(log, session.env.action_space)
    count = len(read_log(log).lines)
    for _ in range(2):
        policy.reset(0)
        taken = []
        while not policy.finished:
            taken.append(policy(None))
        assert taken == [line["action"] for line in read_log(log).lines]
        assert len(taken) == count
    (tmp_path / "empty.jsonl").write_text(log.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="holds no step"):
        RecordedPolicy(tmp_path / "empty.jsonl", session.env.action_space)
    log.write_text(log.read_text().replace('"action": 0', '"action": 9'))
    with pytest.raises(ValueError, match=r"tiny-5-001.jsonl, line 2: action 9: expected one of Discrete\(3\)"):
        RecordedPolicy(log, session.env.action_space)


def test_a_world_of_keys_presses_them_by_their_names():
    actions = BinaryActions(3, ("left", "right", "jump"))
    codes = {name: key_code(name) for name in ("left", "right", "space")}
    plain = key_map({}, actions)
    assert {keys: action.tolist() for keys, action in plain.items()} == {
        (): [0, 0, 0],
        (codes["left"],): [1, 0, 0],
        (codes["right"],): [0, 1, 0],
        tuple(sorted((codes["left"], codes["right"]))): [1, 1, 0],
    }
    carded = key_map({"keys": {"left": [1, 0, 0], "space": [0, 0, 1]}}, actions)
    both = carded[tuple(sorted((codes["left"], codes["space"])))]
    assert (both.tolist(), both.dtype) == ([1, 0, 1], np.int8)
    assert deed(both, actions) == "left, jump"
    with pytest.raises(ValueError, match="expected 3 zeros and ones"):
        key_map({"keys": {"left": [1, 0]}}, actions)
