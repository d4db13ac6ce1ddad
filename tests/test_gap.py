"""The gap between dream and reality, and what a guard would leave of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents import gap
from agents.gap import Settings, Steps, compare, means


def steps(episode, age, signal, **values) -> Steps:
    columns = [np.array(x) for x in (episode, age, signal)]
    return Steps(*columns, {name: np.array(x, float) for name, x in values.items()})


def test_a_step_is_trusted_until_the_one_that_a_guard_would_cut():
    played = steps([0, 1, 0, 1, 0, 1], [1, 1, 2, 2, 3, 3], [0.5, 0.5, 2.5, 0.5, 0.5, 2.1], end=np.zeros(6))
    assert played.trusted(2.0).tolist() == [True, True, True, True, False, True]
    assert played.trusted(3.0).all()


def test_real_steps_are_weighed_by_the_ages_of_the_dreamed_ones():
    dream = steps([0] * 4, [0, 0, 0, 10], [0.0] * 4, end=[0.1, 0.1, 0.1, 0.5])
    real = steps([0, 0, 1, 1], [0, 10, 0, 10], [0.0] * 4, end=[0.0, 1.0, 0.0, 0.6])
    ours, theirs = means(dream, real, np.ones(4, bool), [np.ones(1), np.ones(2)], span=10)
    assert ours == pytest.approx([0.2])
    assert theirs == pytest.approx([0.25 * 0.8])
    ours, theirs = means(dream, real, dream.age < 10, [np.ones(1), np.ones(2)], span=10)
    assert (ours, theirs) == (pytest.approx([0.1]), pytest.approx([0.0]))


def test_ages_that_reality_never_reached_are_left_out():
    dream = steps([0, 0], [0, 30], [0.0, 0.0], end=[0.1, 0.9])
    real = steps([0], [0], [0.0], end=[0.0])
    assert means(dream, real, np.ones(2, bool), [np.ones(1)] * 2, span=10)[0] == pytest.approx([0.1])


def test_a_guard_that_cuts_false_ends_narrows_the_gap():
    """Dreams whose second half is wrong and says so."""
    rng, count = np.random.default_rng(0), 40
    episode, age = np.repeat(np.arange(count), 20), np.tile(np.arange(20), count)
    wrong = age >= 10
    dream = steps(episode, age, np.where(wrong, 3.0, 1.0), end=np.where(wrong, 0.5, 0.1))
    real = steps(episode, age, np.zeros(len(age)), end=rng.random(len(age)) < 0.1)
    none, cut = compare(dream, real, Settings(bounds=(2.0,), span=5, draws=50))
    assert none["end"]["low"] > 0.1
    assert abs(cut["end"]["gap"]) < 0.1 < none["end"]["gap"]
    assert cut["end"]["low"] <= cut["end"]["gap"] <= cut["end"]["high"]
    assert cut["kept"] == pytest.approx(11 / 20)


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--bounds", "-1"], ["--world", "nowhere"]])
def test_wrong_settings_are_one_line(wrong, tmp_path, capsys):
    assert gap.main([*wrong, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "gap.json").exists()


@pytest.mark.slow
def test_the_shipped_policy_has_a_gap(tmp_path, capsys):
    pytest.importorskip("vizdoom")
    given = ["--worlds", "2", "--steps", "12", "--episodes", "2", "--max-steps", "10", "--draws", "20", "--span", "5"]
    assert gap.main([*given, "--bounds", "0.01", "1000", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "gap.json").read_text())["rows"]
    assert [row["bound"] for row in rows] == [None, 0.01, 1000]
    assert rows[0] | {"bound": 1000} == rows[2]
    assert rows[1]["kept"] == pytest.approx(4 / 24, abs=1e-4)
    assert rows[0]["reward"]["real"] == pytest.approx(4.0)
    assert "no guard" in capsys.readouterr().out
