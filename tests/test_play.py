"""Play: keys become actions, commands do what they say, the window never waits, and files are whole."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pygame
import pytest
from PIL import Image

import inferix_env
from engine import ContinuousActions
from inferix_env import play, viewer
from inferix_env.env import WorldSimEnv
from inferix_env.headless import Tally, lively_script
from inferix_env.keys import Keys, free_commands
from inferix_env.play_config import PlayConfig
from inferix_env.session import Session
from inferix_env.viewer import Window
from tests.worlds import make_world

FPS = 16.0  # a tiny step has to fit, on a busy machine too
LEFT, RIGHT, A = pygame.K_LEFT, pygame.K_RIGHT, pygame.K_a
NONE, GO_LEFT, GO_RIGHT = 0, 1, 2


class WatchedEnv(WorldSimEnv):
    """Keeps the actions it was given, ends when told to, and can be slow."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.taken: list[int] = []
        self.seeds: list[int | None] = []
        self.ends, self.delay = False, 0.0
        self.threads: set[int] = set()

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.threads.add(threading.get_ident())
        time.sleep(self.delay)
        observation, _, _, _, info = super().step(action)
        self.taken.append(action)
        self.state.over = self.ends
        return observation, 1.0, self.ends, False, info


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("worlds") / "tiny_world", fps=FPS)


@pytest.fixture(autouse=True)
def dummy_driver(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer.start_display()
    pygame.event.clear()


@pytest.fixture
def session(folder, tmp_path):
    window = Window((32, 32), "test", FPS, scale=8, strip=True)
    session = Session(WatchedEnv(folder), window, PlayConfig(out=tmp_path / "out", seed=5))
    until(session, lambda: session.episode.steps > 0)
    yield session
    session.close()


@pytest.fixture
def paused(session) -> Session:
    tap(session, pygame.K_SPACE)
    until(session, lambda: session.pending is None)
    return session


def post(kind: int, key: int) -> None:
    pygame.event.post(pygame.Event(kind, key=key))


def turn(session: Session) -> None:
    """One round of the session's loop."""
    for event in session.window.events():
        session.handle(event)
    session.tick()


def until(session: Session, condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        turn(session)
        time.sleep(0.002)


def run_for(session: Session, seconds: float) -> None:
    end = time.monotonic() + seconds
    until(session, lambda: time.monotonic() >= end)


def tap(session: Session, key: int) -> None:
    post(pygame.KEYDOWN, key)
    post(pygame.KEYUP, key)
    turn(session)


def steps(session: Session, count: int) -> list[int]:
    """The actions of the next `count` steps that start from now on."""
    until(session, lambda: session.pending is None)
    begin = len(session.env.taken)
    until(session, lambda: len(session.env.taken) >= begin + count)
    return session.env.taken[begin : begin + count]


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def run_main(monkeypatch, *arguments: object) -> int | str | None:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["play", *map(str, arguments)])
    try:
        play.main()
    except SystemExit as end:
        return end.code
    return None


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_pygame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    for name in ("viewer", "hud"):
        monkeypatch.delitem(sys.modules, f"inferix_env.{name}")
        monkeypatch.delattr(inferix_env, name)


def test_held_keys_act_and_released_ones_do_not(session):
    assert set(steps(session, 2)) == {NONE}
    post(pygame.KEYDOWN, RIGHT)
    turn(session)
    assert set(steps(session, 3)) == {GO_RIGHT}
    post(pygame.KEYUP, RIGHT)
    turn(session)
    assert set(steps(session, 2)) == {NONE}
    post(pygame.KEYDOWN, A)
    turn(session)
    assert set(steps(session, 2)) == {GO_LEFT}


def test_losing_the_keyboard_lets_all_keys_go(session):
    post(pygame.KEYDOWN, RIGHT)
    turn(session)
    pygame.event.post(pygame.Event(pygame.WINDOWFOCUSLOST))
    turn(session)
    assert set(steps(session, 2)) == {NONE}


def test_the_key_pressed_last_wins():
    keys = Keys({(): 0, (LEFT,): 1, (RIGHT,): 2})
    keys.press(LEFT)
    keys.press(RIGHT)
    assert keys.take() == 2
    keys.press(LEFT)
    assert keys.take() == 1
    keys.release(LEFT)
    assert keys.take() == 2


def test_a_tap_between_two_steps_counts_once():
    keys = Keys({(): 0, (LEFT,): 1})
    keys.press(LEFT)
    keys.release(LEFT)
    assert [keys.take(), keys.take()] == [1, 0]


def test_combinations_beat_single_keys():
    keys = Keys({(): 0, (LEFT,): 1, (A,): 3, (A, LEFT): 4})
    keys.press(LEFT)
    keys.press(A)
    assert keys.take() == 4


def test_the_worlds_keys_come_before_commands():
    commands = free_commands({"s", "w", "left"})
    assert "s" not in commands
    assert commands["f2"] == "screenshot"
    assert commands["r"] == "reset"


def test_r_resets_with_the_next_seed(session):
    tap(session, pygame.K_r)
    until(session, lambda: session.episode.seed == 6)
    assert session.env.seeds == [5, 6]
    assert session.episode.steps == 0


def test_space_pauses_and_n_steps_once(paused):
    count = len(paused.env.taken)
    run_for(paused, 5 / FPS)
    assert len(paused.env.taken) == count
    post(pygame.KEYDOWN, RIGHT)
    tap(paused, pygame.K_n)
    run_for(paused, 5 / FPS)
    assert paused.env.taken[count:] == [GO_RIGHT]
    tap(paused, pygame.K_SPACE)
    assert set(steps(paused, 2)) == {GO_RIGHT}


def test_n_does_nothing_while_it_runs(session):
    tap(session, pygame.K_n)
    assert session.singles == 0


def test_an_end_is_shown_and_goes_on_by_itself(session, monkeypatch):
    session.env.ends = True
    until(session, lambda: session.episode.over == "ended")
    hud = session._hud(time.perf_counter())
    assert hud["banner"][0] == "ended - R to reset"
    assert f"return {session.episode.total:.1f}" in hud["banner"][1]
    count = len(session.env.taken)
    run_for(session, 5 / FPS)
    assert len(session.env.taken) == count
    session.env.ends = False
    monkeypatch.setattr("inferix_env.session.RESTART_AFTER", 0.0)
    until(session, lambda: session.episode.seed == 6 and session.episode.steps > 0)


def test_s_saves_a_picture_of_the_frame(paused):
    tap(paused, pygame.K_s)
    [path] = paused.config.out.iterdir()
    assert path.name == "tiny-world-5-001.png"
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture)[::4, ::4], paused.env.frames[-1])
    tap(paused, pygame.K_s)
    assert len(list(paused.config.out.iterdir())) == 2


def test_v_records_every_step_between_two_presses(paused):
    tap(paused, pygame.K_v)
    assert paused._hud(0)["recording"]
    shown = []
    for _ in range(4):
        count = len(paused.env.taken)
        tap(paused, pygame.K_n)
        until(paused, lambda count=count: len(paused.env.taken) > count and paused.pending is None)
        shown.append(paused.env.frames[-1])
    tap(paused, pygame.K_v)
    assert not paused._hud(0)["recording"]
    [path] = paused.config.out.iterdir()
    frames = decoded(path)
    assert len(frames) == 4
    assert frames[0].shape == (128, 128, 3)
    means = np.mean(frames, axis=(1, 2))
    np.testing.assert_allclose(means, np.mean(shown, axis=(1, 2)), atol=6)


def test_quitting_keeps_the_recording(session):
    tap(session, pygame.K_v)
    steps(session, 3)
    tap(session, pygame.K_ESCAPE)
    assert session.done
    session.close()
    [path] = session.config.out.iterdir()
    assert len(decoded(path)) >= 3


def test_what_cannot_be_saved_is_told(paused, tmp_path):
    (tmp_path / "out").write_text("in the way")
    tap(paused, pygame.K_s)
    assert "--out" in paused.note
    tap(paused, pygame.K_v)
    assert paused.recorder is None
    assert paused.note.startswith("not recording")


def test_help_names_the_actions_and_the_commands(session):
    tap(session, pygame.K_F1)
    rows = session._hud(0)["help"]
    assert (["left", "a"], "left") in rows
    assert (["escape"], "quit") in rows
    tap(session, pygame.K_F1)
    assert not session._hud(0)["help"]


def test_closing_the_window_quits(session):
    pygame.event.post(pygame.Event(pygame.WINDOWCLOSE, window=session.window.window))
    turn(session)
    assert session.done


def test_a_slow_model_does_not_hold_the_window(session):
    session.env.delay = 0.4
    until(session, lambda: session.pending is not None)
    longest, count = 0.0, len(session.env.taken)
    end = time.monotonic() + 0.9
    while time.monotonic() < end:
        begin = time.perf_counter()
        turn(session)
        longest = max(longest, time.perf_counter() - begin)
        time.sleep(0.005)
    assert longest < 0.3
    assert len(session.env.taken) - count <= 3
    assert len(session.env.threads) == 1
    assert threading.get_ident() not in session.env.threads


def test_steps_come_at_the_worlds_pace(session):
    steps(session, 30)
    rate = float(dict(session._numbers())[f"steps/s of {FPS:g}"])
    assert rate <= FPS * 1.2


def test_an_error_in_the_model_comes_out(session):
    def fail(action):
        raise ValueError("broken")

    session.env.step = fail
    with pytest.raises(ValueError, match="broken"):
        run_for(session, 1)


def test_all_frames_of_a_block_are_shown(tmp_path):
    env = WatchedEnv(make_world(tmp_path / "blocks", fps=FPS, block=2))
    session = Session(env, Window((32, 32), "test", FPS, scale=4, strip=True), PlayConfig(out=tmp_path))
    shown = []
    show = session.window.show

    def watch(frame, hud):
        if not shown or frame is not shown[-1]:
            shown.append(frame)
        show(frame, hud)

    session.window.show = watch
    until(session, lambda: session.episode.steps == 4)
    assert f"steps/s of {FPS / 2:g}" in dict(session._numbers())
    session.pause()
    until(session, lambda: session.pending is None and not session.frames)
    assert len(shown) >= 2 * session.episode.steps
    session.close()


@pytest.mark.usefixtures("no_display", "no_pygame")
def test_with_no_display_a_script_plays_into_files(monkeypatch, folder, tmp_path, capsys):
    assert run_main(monkeypatch, "--world", folder, "--out", tmp_path / "out", "--steps", 30, "--seed", 3) is None
    lines = capsys.readouterr().out.splitlines()
    clip, sheet = tmp_path / "out" / "tiny-world-3.mp4", tmp_path / "out" / "tiny-world-3-sheet.png"
    assert lines[0] == "no display: a scripted agent plays tiny-world for 30 steps"
    assert lines[1:3] == [str(clip), str(sheet)]
    assert lines[3].startswith("30 steps, ")
    assert "steps/s" in lines[3]
    assert len(decoded(clip)) == 30
    with Image.open(sheet) as picture:
        assert picture.size[0] > 6 * 64
    assert sorted(tmp_path.joinpath("out").iterdir()) == [sheet, clip]


@pytest.mark.usefixtures("no_display")
def test_a_script_is_followed(monkeypatch, folder, tmp_path):
    taken = []
    step = WorldSimEnv.step
    monkeypatch.setattr(WorldSimEnv, "step", lambda env, action: taken.append(action) or step(env, action))
    run_main(monkeypatch, "--world", folder, "--out", tmp_path, "--steps", 7, "--script", "right*2,left")
    assert taken == [2, 2, 1, 2, 2, 1, 2]


@pytest.mark.usefixtures("no_display")
def test_ctrl_c_keeps_the_finished_part(monkeypatch, folder, tmp_path, capsys):
    step, count = WorldSimEnv.step, iter(range(100))

    def interrupted(env, action):
        if next(count) == 5:
            raise KeyboardInterrupt
        return step(env, action)

    monkeypatch.setattr(WorldSimEnv, "step", interrupted)
    assert run_main(monkeypatch, "--world", folder, "--out", tmp_path) == 130
    assert len(decoded(tmp_path / "tiny-world-0.mp4")) == 5
    printed = capsys.readouterr()
    assert "5 steps, " in printed.out
    assert printed.err.endswith("stopped\n")


@pytest.mark.parametrize("steps", [1, 24, 100, 1000])
def test_a_sheet_spreads_over_all_steps(steps):
    tally = Tally()
    for step in range(steps):
        tally.add(np.full((1, 1, 3), step % 251, np.uint8), 1.0, False)
    assert len(tally.frames) < 48
    assert len(tally.sheet()) == min(steps, 24)
    assert steps - len(tally.frames) * tally.stride <= 0


def test_headless_opens_no_window_where_there_is_a_display(monkeypatch, folder, tmp_path, capsys):
    monkeypatch.setattr(viewer, "Window", None)
    assert run_main(monkeypatch, "--world", folder, "--out", tmp_path, "--steps", 3, "--headless") is None
    assert capsys.readouterr().out.startswith("headless: ")


def test_a_window_plays_a_script_for_so_many_steps(monkeypatch, folder, tmp_path):
    taken = []
    step = WorldSimEnv.step

    def watch(env, action):
        taken.append(action)
        observation, reward, _, _, info = step(env, action)
        env.state.over = False
        return observation, reward, False, False, info

    monkeypatch.setattr(WorldSimEnv, "step", watch)
    arguments = ("--world", folder, "--out", tmp_path, "--steps", 4, "--script", "right*2,left")
    assert run_main(monkeypatch, *arguments) is None
    assert taken == [2, 2, 1, 2]


@pytest.mark.usefixtures("no_pygame")
def test_missing_pygame_names_the_extra(monkeypatch, folder):
    assert "pip install 'inferix-env[play]'" in str(run_main(monkeypatch, "--world", folder))


@pytest.mark.usefixtures("no_display")
def test_missing_av_names_the_extra(monkeypatch, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    status = str(run_main(monkeypatch, "--world", folder, "--out", tmp_path))
    assert "pip install 'inferix-env[" in status
    assert "\n" not in status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--world", "nowhere"), "error: no world 'nowhere'"),
        (("--seed", "-1"), "error: --seed -1: expected 0 or more"),
        (("--steps", "0"), "error: --steps 0: expected 1 or more"),
        (("--scale", "0"), "error: --scale 0: expected 1 or more"),
    ],
)
def test_a_bad_setting_is_one_line(monkeypatch, arguments, message):
    status = run_main(monkeypatch, *arguments)
    assert isinstance(status, str)
    assert status.startswith(message)
    assert "\n" not in status


@pytest.mark.usefixtures("no_display")
def test_a_folder_that_cannot_be_made_is_one_line(monkeypatch, folder, tmp_path):
    (tmp_path / "file").write_text("")
    status = run_main(monkeypatch, "--world", folder, "--out", tmp_path / "file")
    assert str(status).startswith("error: folder")


def test_help_exits_zero(monkeypatch, capsys):
    assert run_main(monkeypatch, "--help") == 0
    assert "--script" in capsys.readouterr().out


def test_the_lively_script_moves_and_stays_legal(folder):
    script = lively_script(WorldSimEnv(folder), seed=0)
    assert set(script) == {1, 2}


def test_the_lively_script_of_a_continuous_world_is_reproducible(tmp_path):
    env = WorldSimEnv(make_world(tmp_path, actions=ContinuousActions((-1.0, -1.0), (1.0, 1.0))))
    script = lively_script(env, seed=0)
    for action in script:
        env.world_spec.actions.encode(action)
    np.testing.assert_array_equal(script, lively_script(env, seed=0))
