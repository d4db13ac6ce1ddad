"""The driver steers by what it sees, in a picture and in the game, and a continuous world's keys add up."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import inferix_env
from agents.driver import CAR, SCALE, Driver, centre_line, road, speed
from engine import ContinuousActions, PixelEnv
from inferix_env.actions import key_map
from inferix_env.keys import Keys, rows_of_help

GRASS, TARMAC = (100, 204, 100), (102, 102, 102)
LEFT, RIGHT, UP, DOWN = 1073741904, 1073741903, 1073741906, 1073741905
PEDALS = ContinuousActions((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0), ("steer", "gas", "brake"))
CARD = {"keys": {"left": [-0.7, 0, 0], "right": [0.7, 0, 0], "up": [0, 0.6, 0], "down": [0, 0, 0.8], "a": [-0.7, 0, 0]}}


def picture(bend: float = 0.0, shift: float = 0.0, metres: float = 0.0) -> np.ndarray:
    """A frame uint8 [96, 96, 3] of a road 13.3 m wide, as CarRacing draws its own.

    Args:
        bend: how far to the right the road has gone 30 m ahead, in metres.
        shift: how far to the right it lies at the car.
        metres: a second, shown by the bar.
    """
    frame = np.full((96, 96, 3), GRASS, np.uint8)
    rows, columns = np.indices((96, 96))
    x, y = (columns - CAR[0]) / SCALE[0], (CAR[1] - rows) / SCALE[1]
    frame[np.abs(x - shift - bend * (y / 30) ** 2 * (y > 0)) < 6.67] = TARMAC
    window = np.zeros((800, 1000), np.uint8)
    window[round(780 - 0.4 * metres) : 780, 125:150] = 255
    bars = np.asarray(Image.fromarray(window).resize((96, 96), Image.Resampling.BOX))
    frame[84:] = bars[84:, :, None]
    return frame


@pytest.mark.parametrize(("metres", "slack"), [(0, 0.01), (20, 4), (50, 6), (80, 10)])
def test_the_speed_is_read_off_the_bar(metres, slack):
    assert speed(picture(metres=metres)) == pytest.approx(metres, abs=slack)


def test_the_road_is_what_is_grey():
    seen = road(picture())
    assert seen.shape == (84, 96)
    assert seen[40, 48]
    assert not seen[40, 20]
    frame = picture()
    frame[40, 48], frame[41, 48], frame[42, 48] = (255, 255, 255), (255, 0, 0), (0, 0, 0)
    assert not road(frame)[40:43, 48].any()


def test_the_centre_line_follows_the_road():
    ahead, right = centre_line(road(picture()), 0.0), centre_line(road(picture(bend=15)), 0.0)
    assert np.nanmax(np.abs(ahead)) < 0.12
    assert not np.isnan(right[:10]).any()
    assert right[9] > right[4] > 0


@pytest.mark.parametrize("side", [-1, 1])
def test_it_turns_with_the_road_and_back_to_it(side):
    for frame in (picture(bend=20 * side), picture(shift=5 * side), picture(shift=20 * side)):
        steer, gas, brake = Driver()(frame)
        assert steer * side > 0.1
        assert 0 <= gas <= 1
        assert 0 <= brake <= 1


def test_it_keeps_a_speed():
    slow, fast = Driver()(picture(metres=10)), Driver()(picture(metres=90))
    assert slow[1] > 0.5
    assert slow[2] == 0
    assert fast[1] == 0
    assert fast[2] > 0.2
    bend, straight = Driver()(picture(bend=25, metres=45)), Driver()(picture(metres=45))
    assert bend[1] < straight[1]


def test_grass_everywhere_and_pictures_of_nothing_are_driven_through():
    driver = Driver()
    for frame in (np.full((96, 96, 3), GRASS, np.uint8), np.zeros((96, 96, 3), np.uint8)):
        action = driver(frame)
        assert action.dtype == np.float32
        assert np.isfinite(action).all()
        assert PEDALS.encode(action).shape == (3,)


def test_an_episode_begins_anew():
    driver, frames = Driver(), [picture(bend=b, metres=30) for b in (20, -20, 5)]
    first = [driver(frame) for frame in frames]
    driver.reset(0)
    assert np.array_equal(first, [driver(frame) for frame in frames])


def test_what_is_no_car_is_refused():
    with pytest.raises(ValueError, match="steers CarRacing's car"):
        Driver(gym.spaces.Discrete(3))
    with pytest.raises(ValueError, match="the driver reads CarRacing's, uint8"):
        Driver()(np.zeros((96, 128, 3), np.uint8))


def test_it_really_drives():
    """A tenth of a lap of CarRacing-v3 in 40 steps of 4 frames; random actions earn less than 20."""
    pytest.importorskip("Box2D")
    env = PixelEnv("CarRacing-v3", (96, 96), 4, settle=13)
    seen, driver, total = env.reset(10_000), Driver(), 0.0
    for _ in range(40):
        seen = env.step(driver(seen.frame))
        total += seen.reward
    env.close()
    assert total > 60


def test_held_keys_add_up_and_stop_at_the_bounds():
    keys = Keys(key_map(CARD, PEDALS))
    assert keys.take().tolist() == [0, 0, 0]
    for code in (LEFT, UP):
        keys.press(code, tap=False)
    assert keys.take().tolist() == pytest.approx([-0.7, 0.6, 0])
    keys.press(ord("a"), tap=False)
    assert keys.take().tolist() == pytest.approx([-1, 0.6, 0])
    keys.clear()
    for code in (LEFT, RIGHT, DOWN):
        keys.press(code, tap=False)
    assert keys.take().tolist() == pytest.approx([0, 0, 0.8])


def test_the_help_says_what_each_key_does():
    keymap = key_map(CARD, PEDALS)
    names = {LEFT: "left", RIGHT: "right", UP: "up", DOWN: "down", ord("a"): "a"}
    rows = rows_of_help(keymap, names, PEDALS, {})
    assert (["up"], "gas +0.6") in rows
    assert [sorted(keys) for keys, text in rows if text == "steer -0.7"] == [["a", "left"]]
    assert len(rows) == 4


@pytest.mark.parametrize("value", [[1, 0], [2, 0, 0], "left", None])
def test_a_key_that_is_no_action_is_refused(value):
    with pytest.raises(ValueError, match=r"the card's key for .*expected"):
        key_map({"keys": {"left": value}}, PEDALS)


def test_the_card_of_the_shipped_world_names_its_keys():
    folder = Path(inferix_env.__file__).parent / "worlds" / "car_racing"
    card = json.loads((folder / "card.json").read_text())
    actions = ContinuousActions(PEDALS.low, PEDALS.high, tuple(card["action_names"]))
    assert {(), (LEFT,), (RIGHT,), (UP,), (DOWN,), tuple(sorted((LEFT, UP)))} <= set(key_map(card, actions))
    assert gym.spec("inferix_env/CarRacing-v0").kwargs == {"world": "car-racing"}
