"""Evaluation: metrics by closed forms, measures on dreams that are known to be good or bad, the command end to end."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import inferix_env.evaluation.world as command
from engine import Condition, ContinuousActions, Engine, load
from inferix_env.evaluation import (
    dream,
    faults,
    findings,
    fire,
    lives,
    metrics,
    policies,
    probe,
    sections,
    tracks,
    written,
)
from inferix_env.evaluation.__main__ import main
from inferix_env.evaluation.dreaming import GROUP, context, context_length, opened, walk
from inferix_env.evaluation.episodes import RealGame, pick_rows, require
from inferix_env.evaluation.world import Config, evaluate
from tests.worlds import TINY, make_world

ENV = "tests.synthetic:tests/MovingSquare-v0"
QUICK = {name: replace(section, size=section.quick) for name, section in sections.SECTIONS.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def engine(world) -> Engine:
    return Engine(load(world, dtype="float32"), max_worlds=GROUP)


@pytest.fixture(scope="module")
def episodes(engine):
    game = RealGame(ENV, engine.spec, 1)
    played = list(game.play([policies.uniform(3)], range(10_000, 10_006), 60, "test"))
    game.close()
    return played


def grey(*levels: int, size: tuple[int, int] = (8, 10)) -> np.ndarray:
    """Frames of one grey each, uint8 [N, H, W, 3]."""
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 16, 24, 3), dtype=np.uint8)


# Closeness


def test_psnr_is_that_of_the_known_error():
    assert metrics.psnr(grey(100), grey(110)) == pytest.approx(20 * np.log10(25.5))
    assert metrics.psnr(noise(3), noise(3)) == float("inf")
    assert metrics.psnr(grey(0), grey(255)) == 0


def test_psnr_pools_errors_rather_than_decibels():
    pooled = 10 * np.log10(255**2 / ((10**2 + 40**2) / 2))
    assert metrics.psnr(grey(50, 50), grey(60, 90)) == pytest.approx(pooled)


def test_squared_error_is_asked_of_each_frame_and_refuses_other_shapes():
    assert metrics.squared_error(grey(5, 5, 5), grey(5, 6, 8)).tolist() == [0, 1, 9]
    with pytest.raises(ValueError, match="same shape"):
        metrics.squared_error(grey(1, 2), grey(1))


def test_gain_of_reality_itself_is_infinite_and_of_the_baseline_zero():
    real, last = noise(2), grey(30, 60, size=(16, 24))
    assert metrics.psnr_gain(real, real, last) == float("inf")
    assert metrics.psnr_gain(real, last, last) == 0
    assert metrics.psnr_gain(grey(100), grey(101), grey(110)) == pytest.approx(20)


# Sharpness


def test_a_constant_or_a_ramp_has_no_sharpness():
    ramp = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (9, 20, 3))
    assert metrics.sharpness(grey(77)).tolist() == [0]
    assert metrics.sharpness(ramp) == 0


def test_sharpness_of_one_bright_pixel():
    frame = np.zeros((10, 12, 3), np.uint8)
    frame[4, 5, 1] = 30
    assert metrics.sharpness(frame) == pytest.approx((4 * 30 + 4 * 30) / (8 * 10 * 3))
    assert metrics.sharpness(np.stack([frame, frame * 2])) == pytest.approx(np.array([1, 2]) * 240 / 240)


# Fire


def test_fire_begins_above_its_thresholds():
    pixels = np.uint8([[(191, 161, 169), (190, 161, 169), (191, 160, 169), (191, 161, 170), (255, 255, 0)]])
    assert metrics.fire_mask(pixels).tolist() == [[True, False, False, False, True]]
    assert metrics.fire_pixels(np.stack([pixels, pixels * 0])).tolist() == [2, 0]


def test_recall_and_precision_differ_and_take_a_tolerance():
    real, made = np.zeros((2, 9, 9), bool)
    real[4, 4], made[4, 4], made[4, 5], made[7, 4] = True, True, True, True
    assert metrics.recall(real, made) == 1
    assert metrics.recall(made, real) == pytest.approx(1 / 3)
    assert metrics.recall(made, real, tolerance=1) == pytest.approx(2 / 3)
    assert metrics.recall(made, real, tolerance=3) == 1
    assert np.isnan(metrics.recall(np.zeros((9, 9), bool), made))


@pytest.mark.parametrize("radius", [0, 1, 2, 4])
def test_dilating_one_pixel_makes_a_square(radius):
    mask = np.zeros((2, 12, 12), bool)
    mask[0, 5, 6], mask[1, 0, 0] = True, True
    grown = metrics.dilate(mask, radius)
    assert grown.sum((1, 2)).tolist() == [(2 * radius + 1) ** 2, (radius + 1) ** 2]
    assert mask.sum() == 2


def test_the_largest_blob_joins_corners_and_nothing_further():
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 1] = True
    mask[5, 5:7] = True
    blob = metrics.largest_blob(mask)
    assert blob.sum() == 3
    assert blob[0, 0]
    assert not blob[5].any()
    assert not metrics.largest_blob(np.zeros((8, 8), bool)).any()
    assert metrics.largest_blob(np.ones((8, 8), bool)).all()


def test_fire_of_reality_itself_is_kept_and_none_is_not():
    real = np.zeros((3, 20, 20), bool)
    real[:2, 5:9, 5:9] = True
    nothing = np.zeros_like(real)
    same, gone = fire.compare(1, real, real, nothing), fire.compare(1, real, nothing, real)
    assert (same["burning"], same["kept"], same["recall"], same["kept_repeat"]) == (2, 1, 1, 0)
    assert (gone["kept"], gone["recall"], gone["recall_repeat"]) == (0, 0, 1)
    assert same["real_area"] == same["dream_area"] == pytest.approx(16 * 2 / 3)
    aside = np.roll(real, fire.TOLERANCE + 4, axis=2)
    assert fire.compare(1, real, aside, nothing)["kept"] == 0
    assert fire.compare(1, real, np.roll(real, fire.TOLERANCE, axis=2), nothing)["recall"] == 1


# Change, saturation, colours


def test_temporal_change_does_not_wrap_around():
    assert metrics.temporal_change(grey(0, 255, 9), grey(255, 0, 7)).tolist() == [255, 255, 2]


def test_saturation_leaves_black_out():
    frame = np.full((1, 4, 3), 100, np.uint8)
    frame[0, 0], frame[0, 1], frame[0, 2] = (0, 1, 2), (2, 100, 100), (100, 253, 100)
    assert metrics.saturated(frame) == 0.5
    assert metrics.saturated(grey(255)).tolist() == [1]


def test_histograms_are_shares_and_their_distance_runs_from_zero_to_one():
    many = metrics.colour_histogram(noise(150))
    assert many.shape == (150, 3, 16)
    assert many.sum(-1) == pytest.approx(1)
    black, white = metrics.colour_histogram(grey(0, 255))
    assert metrics.histogram_distance(black, white) == 1
    assert metrics.histogram_distance(many, many).max() == 0
    red = metrics.colour_histogram(np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert metrics.histogram_distance(red, black) == pytest.approx(1 / 3)


# Scores


def test_average_precision_by_hand_perfect_and_blind():
    labels = np.array([0, 0, 1, 1])
    assert metrics.average_precision(np.array([0.1, 0.4, 0.35, 0.8]), labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.average_precision(np.array([0.1, 0.2, 0.8, 0.9]), labels) == 1
    assert np.isnan(metrics.average_precision(np.ones(3), np.zeros(3)))


def test_average_precision_of_scores_that_know_nothing_is_the_base_rate():
    rng = np.random.default_rng(0)
    labels = rng.random(40_000) < 0.05
    assert metrics.average_precision(np.full(40_000, 0.3), labels) == pytest.approx(labels.mean())
    assert metrics.average_precision(rng.random(40_000), labels) == pytest.approx(labels.mean(), rel=0.1)


def test_reliability_counts_every_score_once():
    scores, labels = np.array([0.0, 0.05, 0.1, 0.5, 1.0]), np.array([0, 1, 0, 1, 1])
    rows = metrics.reliability(scores, labels, np.array([0, 0.1, 0.4, 1.0]))
    assert [row["count"] for row in rows] == [2, 1, 2]
    assert [row["observed"] for row in rows] == [0.5, 0, 1]
    assert rows[2]["predicted"] == 0.75


def test_balanced_accuracy_sees_through_a_common_class():
    labels = np.array([0] * 98 + [1, 2])
    assert metrics.accuracy(labels, np.zeros(100)) == 0.98
    assert metrics.balanced_accuracy(labels, np.zeros(100)) == pytest.approx(1 / 3)
    assert metrics.balanced_accuracy(labels, labels) == 1


# Findings


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (2.5, 2.5, None, True),
        (2.49, 2.5, None, False),
        (1.25, 0.8, 1.25, True),
        (1.26, 0.8, 1.25, False),
        (float("nan"), None, None, False),
        (float("inf"), 2.5, None, True),
        (0, 0, 0, True),
        (1, 0, 0, False),
    ],
)
def test_a_check_passes_within_its_bounds(value, low, high, passed):
    assert findings.Check("x", value, low, high).passed is passed


def test_a_target_says_its_bounds():
    assert findings.Check("x", 1, low=33, unit="dB").target == "at least 33 dB"
    assert findings.Check("x", 1, high=2).target == "at most 2"
    assert findings.Check("x", 1, low=-2, high=2, unit="dB").target == "-2 to 2 dB"


def test_plain_values_are_strict_json():
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": [float("nan"), np.float64("inf")], "d": np.bool_(True)}
    assert (
        json.dumps(findings.plain(value), allow_nan=False) == '{"a": 0.5, "b": [0, 1], "c": ["nan", "inf"], "d": true}'
    )


def test_tables_align_numbers_and_show_them_short():
    text = written.table(["what", "x"], [["a", 0.12345], ["b", 12345.6]])
    assert text.splitlines() == ["| what | x |", "| --- | --: |", "| a | 0.123 |", "| b | 12,346 |"]


def test_the_page_shows_what_the_card_says_of_agents(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    assert "## Agents" not in written.page(results, "")
    rows = [{"policy": "random", "mean": 308, "std": 164.7}, {"policy": "trained", "mean": 813, "std": 454.5}]
    page = written.page(results, "", rows)
    assert page.splitlines()[-4:] == [
        "| policy | mean | std |",
        "| --- | --: | --: |",
        "| random | 308 | 164.70 |",
        "| trained | 813 | 454.50 |",
    ]


# Policies


def test_strafing_goes_side_by_side_with_one_random_step_in_ten():
    actions = policies.take(policies.strafe(3, (1, 2), chance=0), np.random.default_rng(0), 2_000)
    legs = np.diff(np.nonzero(np.diff(actions))[0])
    assert set(actions) == {1, 2}
    assert legs.min() >= 20
    assert legs.max() <= 30
    mixed = policies.take(policies.strafe(3, (1, 2)), np.random.default_rng(0), 20_000)
    assert (mixed == 0).mean() == pytest.approx(0.1 / 3, abs=0.01)


def test_sticky_actions_last_six_steps_and_are_uniform():
    actions = policies.take(policies.sticky(3), np.random.default_rng(0), 60_000)
    assert np.bincount(actions) / 60_000 == pytest.approx(1 / 3, abs=0.03)
    assert (actions[1:] != actions[:-1]).mean() == pytest.approx(1 / 6 * 2 / 3, rel=0.05)


def test_sides_come_from_names_then_keys_else_are_asked_for():
    assert policies.find_sides(TINY, {}) == (1, 2)
    nameless = replace(TINY, actions=replace(TINY.actions, names=()))
    assert policies.find_sides(nameless, {"keys": {"right": 1, "left": 0}}) == (0, 1)
    with pytest.raises(ValueError, match="--sides"):
        policies.find_sides(nameless, {})
    with pytest.raises(ValueError, match="discrete"):
        policies.find_sides(replace(TINY, actions=ContinuousActions((-1.0,), (1.0,))), {})


# Real episodes


def test_an_episode_keeps_its_last_step_but_not_the_black_frame(episodes):
    for episode in episodes:
        assert episode.terminated
        assert len(episode.frames) == episode.steps == len(episode.choices) - 1
        assert episode.frames.reshape(len(episode.frames), -1).any(1).all()
        assert episode.variables[-1, 0] == 0
        assert (episode.choices[0], episode.actions[0].any()) == (-1, False)
        assert (episode.actions[1:].argmax(1) == episode.choices[1:]).all()
        assert (episode.rewards == [0] + [1] * episode.steps).all()


def test_episodes_follow_from_their_seeds(engine, episodes):
    game = RealGame(ENV, engine.spec, 1)
    [again] = game.play([policies.uniform(3)], [10_004], 60, "test")
    [cut] = game.play([policies.uniform(3)], [10_004], 5, "test")
    assert (again.frames == episodes[4].frames).all()
    assert (again.choices == episodes[4].choices).all()
    assert (cut.steps, len(cut.frames), cut.terminated) == (5, 6, False)


def test_a_game_that_is_not_the_worlds_is_refused(engine):
    with pytest.raises(ValueError, match="actions"):
        RealGame(ENV, replace(TINY, actions=replace(TINY.actions, n=4)), 1)
    with pytest.raises(ValueError, match=r"no variables \['ammo'\]"):
        RealGame(ENV, replace(TINY, variables=(replace(TINY.variables[0], name="ammo"),)), 1)


def test_drawn_rows_have_their_context_and_future(episodes):
    rows = pick_rows(episodes, 4, 3, 20, np.random.default_rng(0))
    assert len(set(rows)) == 20
    assert all(3 <= t < len(episodes[i].frames) - 3 for i, t in rows)
    with pytest.raises(ValueError, match="--seed"):
        pick_rows(episodes, 4, 3, 10_000, np.random.default_rng(0))


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"inferix-env\[evaluate\]"):
        require("vizdoom", "the env")
    with pytest.raises(ValueError, match=r"inferix-env\[evaluate\]"):
        RealGame("VizdoomTakeCover-v1", TINY, 4)


# Dreams


def test_a_dream_of_reality_itself_passes_and_one_that_repeats_does_not(engine, episodes):
    real = np.stack([e.frames[5:8] for e in episodes])
    last = np.stack([e.frames[4] for e in episodes])
    codec = SimpleNamespace(model=SimpleNamespace(codec=Lossless(), device=torch.device("cpu")))
    good = dream.compare(codec, real[:, 2], real[:, 2], last, 3)
    poor = dream.compare(codec, real[:, 2], last, last, 3)
    assert (good["gain"], good["sharpness"], good["fire"]) == (float("inf"), 1, 1)
    assert poor["gain"] == 0
    flat = dream.compare(codec, real[:, 2], np.full_like(last, 90), last, 3)
    assert (flat["sharpness"], flat["fire"]) == (0, 0)


class Lossless:
    """A codec whose latents are the frames."""

    def encode(self, frames, state=None):
        return frames, None

    def decode(self, latents, state=None):
        return latents.to(torch.uint8), None


def test_a_context_is_as_long_as_the_history_a_block_sees(engine, episodes):
    assert context_length(engine.spec) == 4
    start = context(episodes[0], 6, 4)
    assert (start.frames == episodes[0].frames[3:7]).all()
    assert (start.actions == episodes[0].actions[3:7]).all()
    assert len(context(episodes[0], 1, 4).frames) == 2


def test_a_walk_holds_variables_where_asked_and_gives_its_worlds_back(engine, episodes, monkeypatch):
    starts = [e.rows(0, 1) for e in episodes]
    actions = np.tile(np.float32([0, 1, 0]), (len(starts), 6, 1))
    asked = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda ws, a: (asked.append([w.variables.copy() for w in ws]), step(ws, a))[1])
    frames = list(walk(engine, starts, actions, range(6), hold=True))
    assert np.shape(frames) == (6, 6, 32, 32, 3)
    assert (np.array(asked) == [s.variables[-1] for s in starts]).all()
    with pytest.raises(RuntimeError), opened(engine, starts, range(6)) as worlds:
        raise RuntimeError
    assert not any(w.open for w in worlds)


def test_ends_asked_along_an_episode_are_those_of_its_whole_history(engine, episodes):
    asked = lives.ask_all(engine, episodes)
    assert asked.ended.sum() == len(episodes)
    assert len(asked.ended) == sum(e.steps for e in episodes)
    odds = lives.ask_all(engine, episodes[:1]).probabilities
    for t in (1, 5, episodes[0].steps):
        world = engine.open(episodes[0].rows(0, t), seed=0)
        [expected], _ = engine.outlook([world], [Condition.of(episodes[0].actions[t][None])])
        engine.close(world)
        assert odds[t - 1] == pytest.approx(expected, rel=1e-4)


def test_dreamed_lives_last_until_their_end_or_the_limit(engine, episodes):
    many = [*episodes] * 4
    dreams = lives.survive(engine, many, policies.uniform(3), np.random.default_rng(0), 5)
    assert len(dreams) == 24
    for blocks in dreams:
        assert 1 <= len(blocks) <= 5
        assert not any(block.terminated for block in blocks[:-1])
        assert blocks[-1].terminated or len(blocks) == 5


# Tracks


def a_track(fire: list[float], change: float = 5.0, colours: np.ndarray | None = None, saturated: float = 0.01):
    n = len(fire)
    colours = metrics.colour_histogram(noise(1))[0] if colours is None else colours
    full = np.broadcast_to(colours, (n, 3, 16))
    return tracks.Track(np.array(fire, float), np.ones(n), np.full(n, change), np.full(n, saturated), full)


def test_means_over_ages_count_frames_or_ages():
    short, long = a_track([8.0]), a_track([0.0, 2.0, 4.0])
    assert tracks.mean_at([short, long], "fire", 1, 4) == pytest.approx(14 / 4)
    assert tracks.mean_at([short, long], "fire", 1, 4, even=True) == pytest.approx((4 + 2 + 4) / 3)
    assert tracks.mean_at([short, long], "fire", 2, 10**9) == 3
    assert np.isnan(tracks.mean_at([short, long], "fire", 4, 9))


def test_the_spread_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(0)
    many = [a_track([value]) for value in rng.normal(10, 2, 400)]
    assert tracks.spread(many, "fire", 1, 2, rng) == pytest.approx(2 / 20, rel=0.2)
    assert np.isnan(tracks.spread(many[:1], "fire", 1, 2, rng))


def test_a_track_pairs_each_frame_with_the_one_before():
    made = tracks.track(grey(0, 10, 5))
    assert made.change.tolist() == [10, 5]
    assert len(made) == 2


def test_faulty_windows_are_told_from_sound_ones():
    real = [a_track([1.0] * 20, change) for change in (4.0, 6.0)]
    white = metrics.colour_histogram(grey(255))[0]
    sound, frozen = a_track([1.0] * 20), a_track([1.0] * 20, change=0.1)
    burnt, gone = a_track([1.0] * 20, saturated=0.9), a_track([1.0] * 20, colours=white)
    found = faults.find_faults(real, [sound, frozen, burnt, gone, a_track([1.0] * 20, change=50)], 10).ages
    assert found == {"frozen": [1, 11], "boiling": [1, 11], "saturated": [1, 11], "collapsed": [1, 11]}
    with pytest.raises(ValueError, match="lasts 21 steps"):
        faults.find_faults(real, [sound], 21)


# Probe


def test_a_probe_learns_which_way_a_square_moved():
    rng = np.random.default_rng(0)
    frames, labels = np.full((300, 2, 32, 32, 3), 20, np.uint8), rng.integers(3, size=300)
    for pair, label in zip(frames, labels, strict=True):
        y, x = rng.integers(8, 18, 2)
        for frame, at in zip(pair, (x, x + (0, -3, 3)[label]), strict=True):
            frame[y : y + 6, at : at + 6] = 230
    rows = np.array([(i, 1) for i in range(300)])
    train, test = (probe.Pairs(list(frames), rows[part], labels[part]) for part in (slice(0, 240), slice(240, 300)))
    state = torch.random.get_rng_state()
    learned = probe.train_probe(train, 3, probe.ProbeSize(epochs=30), 0, torch.device("cpu"))
    assert metrics.balanced_accuracy(test.labels, probe.guess(learned, test, torch.device("cpu"))) > 0.9
    assert (torch.random.get_rng_state() == state).all()


# The command


def run(world: Path, out: Path, **changes) -> dict:
    return evaluate(Config(world=str(world), env=ENV, out=out, quick=True, **changes))


@pytest.fixture(scope="module")
def evaluated(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    card = (world / "world.json").read_text()
    run(world, out)
    assert (world / "world.json").read_text() == card
    return out


def test_the_command_writes_results_pictures_and_a_page(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    page = (evaluated / "results.md").read_text()
    assert list(results["sections"]) == list(sections.SECTIONS)
    for section in results["sections"].values():
        assert section["checks"]
        assert f"## {section['title']}" in page
        for picture in section["pictures"]:
            assert f"({picture['file']})" in page
            with Image.open(evaluated / picture["file"]) as image:
                assert min(image.size) > 100
                assert np.asarray(image).std() > 5
    assert max(map(len, page.split("## Targets")[0].splitlines())) < 120
    assert not list(evaluated.glob("*.tmp"))


def test_every_target_is_printed_with_pass_or_fail(world, tmp_path, capsys):
    results = run(world, tmp_path, only=("codec", "round-trip"))
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.endswith(("pass", "fail"))]
    assert len(rows) == len(written.checks_of(results)) == 5
    assert "at least 33 dB" in printed
    assert f"of {len(rows)} targets met" in printed


def test_a_section_run_alone_measures_the_same_and_keeps_the_others(world, evaluated, tmp_path):
    whole = json.loads((evaluated / "results.json").read_text())
    alone = run(world, tmp_path, only=("round-trip",))
    assert alone["sections"]["round-trip"]["numbers"] == whole["sections"]["round-trip"]["numbers"]
    more = run(world, tmp_path, only=("codec",))
    assert list(more["sections"]) == ["codec", "round-trip"]
    fresh = run(world, tmp_path, only=("codec",), seed=20_000)
    assert list(fresh["sections"]) == ["codec"]


def test_a_stop_keeps_the_sections_that_were_done(world, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(command.SECTIONS, "dream", replace(QUICK["dream"], measure=stop))
    assert main(["--world", str(world), "--env", ENV, "--quick", "--out", str(tmp_path)]) == 130
    assert "stopped: sections" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "results.json").read_text())["sections"]) == ["codec"]


def test_the_card_takes_the_results_only_when_asked(tmp_path, monkeypatch):
    folder = make_world(tmp_path / "world")
    for name, section in QUICK.items():
        monkeypatch.setitem(command.SECTIONS, name, section)
    before = json.loads((folder / "world.json").read_text())
    config = Config(world=str(folder), env=ENV, out=tmp_path / "out", only=("codec",), write_card=True)
    evaluate(config)
    after = json.loads((folder / "world.json").read_text())
    assert [check["target"] for check in after["results"]["checks"]][:2] == ["at least 33 dB", "at least 0.7"]
    assert after["results"]["env"] == ENV
    assert {**after, "results": None} == {**before, "results": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--write-card"], "not for a card"),
        (["--env", "Nothing-v0"], "no Gymnasium env"),
        (["--device", "cuda:63"], "CUDA devices"),
    ],
)
@pytest.mark.parametrize("word", [[], ["world"]])
def test_a_bad_setting_is_one_clear_line(world, tmp_path, capsys, word, arguments, message):
    assert main([*word, "--world", str(world), "--env", ENV, "--out", str(tmp_path), *arguments]) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_refused_with_those_there_are(capsys):
    assert main(["fidelty"]) == 2
    assert "expected one of world, fidelity, ranking, drift" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out


def test_seeds_of_training_are_refused(world):
    data = {"env": ENV, "first_seed": 0, "num_seeds": 9_000}
    assert command.trained_seeds(data) == 10_000
    command.check(Config(world=str(world)), data)
    with pytest.raises(ValueError, match="seeds below 10000"):
        command.check(Config(world=str(world), seed=9_999), data)
    with pytest.raises(ValueError, match="give --env"):
        command.check(Config(world=str(world)), {})


def test_by_default_the_page_is_among_the_docs():
    places = command.find_places(Config())
    assert (places.page, places.pictures) == (Path("docs/results.md"), "images/evaluation/")
    assert command.find_places(Config(quick=True)).page == Path("out/evaluation/results.md")
