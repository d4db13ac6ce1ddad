"""Known damage: each does what it says, and the study tells what it does to scores and drift."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inferix_env.evaluation import damage
from inferix_env.evaluation.__main__ import main
from inferix_env.evaluation.clip_scores import Scored
from inferix_env.evaluation.damage_findings import checks_of
from inferix_env.evaluation.damage_study import (
    CLEAN,
    CUT,
    EARLY,
    EXPECTED,
    LATE,
    Case,
    cases_of,
    growing,
    moved,
    over_strengths,
    rows_of,
    study,
)
from inferix_env.evaluation.damages import DAMAGES, Scene, fitted
from inferix_env.evaluation.heat import Heat, draw_heats
from inferix_env.evaluation.scorers import stand_ins


def clip(count: int = 40, seed: int = 0, speed: int = 1) -> np.ndarray:
    """A window that moves over a coarse texture, with a patch that stays, uint8 [count, 32, 48, 3]."""
    ground = np.random.default_rng(seed).integers(30, 220, (8, 40, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.stack([ground[:, speed * t % 100 : speed * t % 100 + 48] for t in range(count)])
    frames[:, 12:20, 18:30] = (200, 80, 40)
    return frames


def scene(seed: int = 0, count: int = 40) -> Scene:
    return Scene(np.random.default_rng(seed), 255 - clip(count, seed=9))


@pytest.mark.parametrize("name", DAMAGES)
def test_no_damage_changes_nothing_and_damage_leaves_the_shape(name):
    frames = clip()
    assert np.array_equal(DAMAGES[name](frames, np.zeros(40), scene()), frames)
    damaged = DAMAGES[name](frames, np.full(40, 0.5), scene())
    assert damaged.shape == frames.shape
    assert damaged.dtype == np.uint8
    assert not np.array_equal(damaged, frames)


@pytest.mark.parametrize("name", ["blur", "cast", "fading", "noise", "swap", "flicker"])
def test_more_damage_is_further_away(name):
    frames = clip()
    apart = [np.abs(DAMAGES[name](frames, np.full(40, a), scene()).astype(int) - frames).mean() for a in (0.25, 0.5, 1)]
    assert 0 < apart[0] < apart[1] < apart[2]


def test_each_damage_by_hand():
    grey = np.full((4, 8, 8, 3), 100, np.uint8)
    ones, other = np.ones(4), np.full((4, 8, 8, 3), 7, np.uint8)
    drawn = Scene(np.random.default_rng(0), other)
    assert DAMAGES["cast"](grey, ones, drawn)[0, 0, 0].tolist() == [150, 100, 50]
    assert DAMAGES["flicker"](grey, ones, drawn)[:, 0, 0, 0].tolist() == [100, 50, 100, 50]
    assert np.array_equal(DAMAGES["swap"](grey, ones, drawn), other)
    half = DAMAGES["swap"](grey, ones / 2, drawn)
    assert (half == 7).all(-1).sum() == 4 * 4 * 4
    assert (half[:, 2:6, 2:6] == 7).all()
    red = np.full((1, 2, 2, 3), (200, 0, 0), np.uint8)
    assert DAMAGES["fading"](red, np.ones(1), drawn)[0, 0, 0].tolist() == [60, 60, 60]
    assert np.array_equal(DAMAGES["blur"](grey, ones, drawn), grey)
    noisy = DAMAGES["noise"](np.full((4, 64, 64, 3), 128, np.uint8), ones / 2, drawn)
    assert noisy.std() == pytest.approx(20, rel=0.05)


def test_frozen_frames_repeat_the_one_before():
    frames = clip()
    frozen = DAMAGES["frozen"](frames, np.r_[np.zeros(20), np.ones(20)], scene())
    assert np.array_equal(frozen[:20], frames[:20])
    assert (frozen[20:] == frames[19]).all()


def test_a_clip_is_fitted_to_another():
    made = fitted(clip(5), 12, 16, 20)
    assert made.shape == (12, 16, 20, 3)
    assert np.array_equal(made[0], made[5])
    assert fitted(clip(5), 5, 32, 48) is not None


def test_damage_sets_in_after_the_first_chunk_and_grows():
    amounts = growing(40, 4)
    assert (amounts[:10] == 0).all()
    assert (np.diff(amounts[9:]) > 0).all()
    assert amounts[-1] == 1
    cases = cases_of(40, 4, (0.5, 1.0))
    assert len(cases) == len(DAMAGES) * 2 + 3
    assert np.flatnonzero(cases[EARLY][1]).tolist() == list(range(10, 30))
    assert np.flatnonzero(cases[LATE][1]).tolist() == list(range(20, 40))
    assert np.flatnonzero(cases[CUT][1]).tolist() == list(range(25, 40))


def test_the_study_adds_up_clips_by_hand():
    def scored(whole: float, *chunks: float) -> dict[str, Scored]:
        apart = sum(abs(c - chunks[0]) for c in chunks) / chunks[0]
        return {
            "clarity": Scored(
                list(chunks), whole, dict.fromkeys(("published-linear", "published-log", "normalised"), apart)
            )
        }

    weak, strong = Case("blur", 0.5), Case("blur", 1.0)
    results = {
        "a": {CLEAN: scored(10, 1, 1), weak: scored(9, 1, 0.9), strong: scored(6, 1, 0.6)},
        "b": {CLEAN: scored(20, 2, 2.2), weak: scored(19, 2, 2), strong: scored(10, 2, 1)},
    }
    rows = rows_of(results)
    assert over_strengths(rows, "blur", "clarity", "change") == pytest.approx([-7.5, -45])
    assert over_strengths(rows, "blur", "clarity", "normalised") == pytest.approx([0, 0.4])  # b drifts less at first
    assert rows[0]["change_error"] == pytest.approx(2.5)
    blur = next(e for e in EXPECTED if (e.damage, e.scorer) == ("blur", "clarity"))
    assert moved(rows, blur, "change", -1) == pytest.approx(7.5)
    assert moved(rows, blur, "normalised", 1) == pytest.approx(0)
    assert moved(rows, blur, "change", +1) < 0


def test_what_stands_in_moves_the_right_way_on_a_made_clip():
    scorers = [s for s in stand_ins() if s.name in ("clarity", "aesthetic", "background")]
    results = study({"a": clip(), "b": clip(seed=3)}, {"a": clip(seed=3), "b": clip()}, scorers, (0.5, 1.0), 4, 0)
    rows = rows_of(results)
    for expected in (e for e in EXPECTED if e.scorer in ("clarity", "aesthetic") and e.damage != "noise"):
        assert moved(rows, expected, "change", expected.sign) > 0, expected
        assert moved(rows, expected, "normalised", 1) > 0, expected
    early, late = (next(r for r in rows if r["damage"] == c.damage and r["scorer"] == "clarity") for c in (EARLY, LATE))
    assert early["published-linear"] > late["published-linear"]
    assert early["normalised"] < late["normalised"]
    checks = checks_of(rows, scorers)
    assert any("background" in check.name for check in checks)
    assert not any("motion" in check.name for check in checks)


def test_a_clip_that_a_scorer_cannot_score_is_named():
    with pytest.raises(ValueError, match="clarity of clip flat"):
        study({"flat": np.zeros((40, 8, 8, 3), np.uint8)}, {"flat": clip()}, stand_ins()[:1], (1.0,), 4, 0)


def test_a_heat_table_shows_every_cell():
    heat = Heat("x", ["a", "b"], ["c", "d", "e"], np.array([[0, 1, -1], [5, -5, 0.1]]), 1, marked=[(0, 1)])
    picture = draw_heats([heat, heat])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    reds, blues = ((picture[..., a].astype(int) - picture[..., b]) > 60 for a, b in ((0, 2), (2, 0)))
    assert reds.sum() > 1000
    assert blues.sum() > 1000


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--strengths", "0"], "different numbers above 0 and up to 1"),
        (["--strengths", "1", "1"], "different numbers above 0 and up to 1"),
        (["--frames", "20"], "expected 4 chunks or more of 3 frames"),
        (["--clips", "0"], "at least one world"),
        (["--worlds", "doom-take-cover", "--clips", "1"], "two clips or more"),
        (["--worlds", "nowhere"], "nowhere"),
    ],
)
def test_the_command_says_one_line_for_what_is_wrong(extra, reason, tmp_path, capsys):
    assert main(["damage", "--out", str(tmp_path), *extra]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_the_command_measures_real_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(damage, "choose", lambda *_: [s for s in stand_ins() if s.name in ("clarity", "aesthetic")])
    asked = ["--worlds", "doom-take-cover", "--clips", "2", "--frames", "24", "--chunks", "4", "--strengths", "1"]
    status = main(["damage", *asked, "--out", str(tmp_path)])
    out = capsys.readouterr().out
    data = json.loads((tmp_path / "damage.json").read_text())
    assert status == (0 if all(check["passed"] for check in data["checks"]) else 1)
    assert "clarity falls with blur" in out
    [row] = [r for r in data["numbers"]["rows"] if (r["damage"], r["scorer"]) == ("blur", "clarity")]
    assert row["change"] < -10
    assert row["normalised"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"damage.json", "damage.png", "damage-frames.png"}
