"""Video Drift Error against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferix_env.evaluation.drift import MODES, DriftUndefined, RunningDrift, chunks, drift, weights

# |m_i - m_1| / m_1 of these: 0.25, 0.5, 0, 1.
SCORES = [4.0, 5.0, 2.0, 4.0, 8.0]


def test_published_linear_by_hand():
    # N = 5: w_2..w_5 = 4, 3, 2, 1.
    assert drift(SCORES) == pytest.approx(4 * 0.25 + 3 * 0.5 + 2 * 0 + 1 * 1)


def test_published_log_by_hand():
    # ln 4, ln 3, ln 2, ln 1: the last chunk counts for nothing, however far it is.
    assert drift(SCORES, "published-log") == pytest.approx(1.3862943611 * 0.25 + 1.0986122887 * 0.5)
    assert drift([*SCORES[:4], 800.0], "published-log") == drift(SCORES, "published-log")


def test_normalised_by_hand():
    # 0.1, 0.2, 0.3, 0.4.
    assert drift(SCORES, "normalised") == pytest.approx(0.1 * 0.25 + 0.2 * 0.5 + 0.4 * 1)


def test_ten_chunks_that_double_at_once():
    scores = [1.0] + [2.0] * 9
    assert drift(scores) == pytest.approx(45)
    assert drift(scores, "published-log") == pytest.approx(math.log(math.factorial(9)))
    assert drift(scores, "normalised") == pytest.approx(1)


def test_normalised_weights_sum_to_one_and_rise():
    for count in (2, 3, 10, 100):
        row = weights(count, "normalised")
        assert row.sum() == pytest.approx(1)
        assert (np.diff(row) > 0).all()


def test_two_chunks_are_the_fewest():
    assert drift([2.0, 3.0], "normalised") == pytest.approx(0.5)
    assert drift([2.0, 3.0], "published-log") == 0
    with pytest.raises(ValueError, match="2 or more"):
        drift([2.0])


def test_chunks_are_equal_and_the_trailing_frames_dropped():
    cut = chunks(47, 10)
    assert [len(chunk) for chunk in cut] == [4] * 10
    assert [i for chunk in cut for i in chunk] == list(range(40))
    assert chunks(10, 10)[-1] == range(9, 10)


def test_a_clip_with_fewer_frames_than_chunks_says_so():
    with pytest.raises(DriftUndefined, match="9 frames cannot be cut into 10 chunks"):
        chunks(9, 10)
    with pytest.raises(ValueError, match="2 or more"):
        chunks(9, 1)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.0, 1.0], "the first chunk scores 0"),
        ([-2.0, 1.0], "the first chunk scores -2"),
        ([1.0, math.nan, 1.0], "chunk 2 of 3 scores nan"),
        ([1.0, 2.0, math.inf], "chunk 3 of 3 scores inf"),
    ],
)
def test_scores_without_a_drift_say_why(scores, reason):
    for mode in MODES:
        with pytest.raises(DriftUndefined, match=reason):
            drift(scores, mode)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'published': expected one of"):
        drift(SCORES, "published")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number for each chunk"):
        drift(np.ones((2, 5)))
    with pytest.raises(ValueError, match="no running form"):
        RunningDrift("published-log")


@settings(deadline=None)  # a busy machine is no failure
@given(
    scores=st.lists(st.floats(0.1, 1e3), min_size=1, max_size=40),
    mode=st.sampled_from(["published-linear", "normalised"]),
)
def test_the_running_drift_is_the_drift_of_the_chunks_so_far(scores, mode):
    running = RunningDrift(mode)
    assert running.add(scores[0]) == 0
    for n in range(2, len(scores) + 1):
        assert running.add(scores[n - 1]) == pytest.approx(drift(scores[:n], mode), rel=1e-9, abs=1e-12)
        assert running.latest == pytest.approx(abs(scores[n - 1] - scores[0]) / scores[0])
    assert running.count == len(scores)


def test_a_score_that_is_refused_leaves_the_running_drift_as_it_was():
    running = RunningDrift()
    with pytest.raises(DriftUndefined, match="scores 0"):
        running.add(0.0)
    running.add(2.0)
    running.add(3.0)
    with pytest.raises(DriftUndefined, match="nan"):
        running.add(math.nan)
    assert (running.count, running.value) == (2, pytest.approx(0.5))


def test_the_running_drift_holds_no_more_after_many_chunks():
    running = RunningDrift()
    running.add(1.0)
    held = set(vars(running))
    for _ in range(1000):
        running.add(2.0)
    assert set(vars(running)) == held
    assert all(isinstance(value, int | float | str) for value in vars(running).values())
