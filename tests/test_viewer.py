"""The window: crisp, paced, responsive, and no trouble when it goes away. Runs on SDL's dummy driver."""

from __future__ import annotations

import time

import numpy as np
import pygame
import pytest

from inferix_env import hud, viewer
from inferix_env.env import WorldSimEnv
from inferix_env.hud import Hud
from inferix_env.viewer import Event, Window, best_scale, layout
from tests.worlds import make_world

EMPTY: Hud = {
    "numbers": [],
    "keys": [],
    "recording": "",
    "paused": False,
    "banner": ("", ""),
    "note": "",
    "help": [],
    "prompt": "",
    "typing": None,
}


@pytest.fixture(autouse=True)
def dummy_driver(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    viewer.start_display()
    pygame.event.clear()


@pytest.fixture
def window():
    window = Window((16, 12), "test", fps=50, scale=40, strip=True)
    yield window
    window.close()


def frames(count: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def pixels(window: Window) -> np.ndarray:
    """What stands in the window, uint8 [H, W, 3]."""
    assert window.window is not None
    return pygame.surfarray.array3d(window.window.get_surface()).swapaxes(0, 1)


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=-1).any())


@pytest.mark.parametrize(
    ("size", "desktop", "expected"),
    [
        ((128, 96), (1920, 1080), 7),
        ((128, 96), (1366, 768), 6),
        ((32, 32), (1920, 1080), 22),
        ((832, 480), (1920, 1080), 1),
        ((4000, 3000), (1920, 1080), 1),
    ],
)
def test_best_scale_fits_the_screen(size, desktop, expected):
    assert best_scale(size, desktop, strip=76) == expected


def test_every_pixel_is_a_square(window):
    [frame] = frames(1)
    window.show(frame)
    shown = pixels(window)[:480, :640]
    np.testing.assert_array_equal(shown, frame.repeat(40, axis=0).repeat(40, axis=1))


@pytest.mark.parametrize(("room", "factor"), [((128 * 3 + 50, 96 * 3 + 76 + 20), 3), ((64, 48 + 76), 0.5)])
def test_layout_follows_the_window(room, factor):
    picture, strip = layout(room, (128, 96), strip=76)
    assert picture.size == (128 * factor, 96 * factor)
    assert (strip.bottom, strip.width) == (room[1], room[0])


def test_scale_is_checked():
    with pytest.raises(ValueError, match="scale 0"):
        Window((16, 12), "test", fps=50, scale=0)


def test_play_paces(window):
    begin = time.perf_counter()
    for frame in frames(6):
        window.play(frame[None])
    assert 4 / 50 <= time.perf_counter() - begin < 1


def test_play_shows_every_frame_of_a_block(window, monkeypatch):
    shown = []
    monkeypatch.setattr(window, "show", lambda frame: shown.append(frame))
    block = frames(4)
    window.play(block)
    np.testing.assert_array_equal(shown, block)


def test_play_never_sleeps_for_a_slow_model(window, monkeypatch):
    naps = []
    monkeypatch.setattr(viewer.time, "sleep", naps.append)
    for start in np.arange(5) * 0.1:  # blocks of 4 frames at 50 a second, one each 0.1 s: the model is slower
        monkeypatch.setattr(viewer.time, "perf_counter", lambda start=start: 100 + start)
        window.play(frames(4))
    assert not naps


def test_closing_by_the_x_does_not_disturb_the_env(tmp_path):
    env = WorldSimEnv(make_world(tmp_path), render_mode="human")
    env.reset(seed=0)
    pygame.event.post(pygame.Event(pygame.WINDOWCLOSE, window=env.window.window))
    for _ in range(3):
        env.reset(seed=0)
        env.step(1)
    assert env.window.closed
    env.close()
    env.close()


def test_play_leaves_other_events_to_their_readers(window):
    pygame.event.post(pygame.Event(pygame.KEYDOWN, key=pygame.K_a))
    window.play(frames(1))
    assert [event.key for event in pygame.event.get(pygame.KEYDOWN)] == [pygame.K_a]


def test_two_windows_close_apart(window):
    other = Window((16, 12), "other", fps=50, scale=2)
    pygame.event.post(pygame.Event(pygame.WINDOWCLOSE, window=other.window))
    window.play(frames(1))
    assert not window.closed
    other.play(frames(1))
    assert other.closed
    assert not window.closed


def test_a_window_outlives_pygames_end():
    window = Window((16, 12), "test", fps=50, scale=2, strip=True)
    pygame.quit()
    for _ in range(2):
        window.play(frames(1))
        window.show(frames(1)[0], EMPTY)
        assert window.events() == [Event("close")]
        viewer.start_display()  # someone else's window does not bring this one back
    window.close()


def test_events_have_plain_names(window):
    window.events()
    for kind, fields in [
        (pygame.KEYDOWN, {"key": pygame.K_LEFT}),
        (pygame.KEYUP, {"key": pygame.K_F1}),
        (pygame.MOUSEMOTION, {}),
        (pygame.WINDOWFOCUSLOST, {}),
        (pygame.WINDOWEXPOSED, {}),
        (pygame.WINDOWCLOSE, {}),
    ]:
        pygame.event.post(pygame.Event(kind, fields))
    assert window.events() == [
        Event("press", pygame.K_LEFT, "left"),
        Event("release", pygame.K_F1, "f1"),
        Event("leave"),
        Event("expose"),
        Event("close"),
    ]


def test_held_keys_are_lit(window):
    frame = np.zeros((12, 16, 3), np.uint8)
    window.show(frame, {**EMPTY, "keys": [("left", False), ("space", False)]})
    assert not has_colour(pixels(window), hud.LIT)
    window.show(frame, {**EMPTY, "keys": [("left", False), ("space", True)]})
    assert has_colour(pixels(window)[480:, 320:], hud.LIT)


def test_a_recording_is_marked(window):
    frame = np.zeros((12, 16, 3), np.uint8)
    window.show(frame, EMPTY)
    assert not has_colour(pixels(window), hud.RED)
    window.show(frame, {**EMPTY, "recording": "REC 3 s"})
    assert has_colour(pixels(window)[:60, 480:], hud.RED)


@pytest.mark.parametrize(
    "part",
    [
        {"paused": True},
        {"banner": ("ended", "return 3.0")},
        {"note": "saved"},
        {"help": [(["left", "a"], "left"), (["escape"], "quit")]},
        {"help": [([str(i)], f"action {i}") for i in range(30)]},
        {"numbers": [("step", "3"), ("return", "3.0")]},
    ],
)
def test_every_part_is_drawn(window, part):
    frame = np.full((12, 16, 3), 255, np.uint8)
    window.show(frame, EMPTY)
    plain = pixels(window)
    window.show(frame, {**EMPTY, **part})
    assert (pixels(window) != plain).any()


def test_many_numbers_take_two_rows(window):
    numbers = [(f"variable {i}", "100") for i in range(10)]
    rows = window.painter.number_rows(numbers, 600)
    assert [len(row) for row in rows] == [5, 5]
    window.show(frames(1)[0], {**EMPTY, "numbers": numbers})
