"""Ranking: rank correlations by hand, dreams of policies that know what they do, returns from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine import Block, Engine, load
from inferix_env.evaluation import ranking, ranking_findings
from inferix_env.evaluation.__main__ import main
from inferix_env.evaluation.dreaming import GROUP
from inferix_env.evaluation.episodes import RealGame
from inferix_env.evaluation.players import make_player
from inferix_env.evaluation.rank_correlation import kendall, ranks, spearman
from inferix_env.evaluation.ranking_findings import Returns
from tests.worlds import make_world

SQUARE = "tests.synthetic:tests/MovingSquare-v0"


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 7.0])).tolist() == [2.5, 1, 2.5, 4]


def test_correlations_by_hand():
    a, b = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    assert spearman(a, b) == pytest.approx(1 - 6 * 4 / (5 * 24))  # squared differences of ranks sum to 4
    assert kendall(a, b) == pytest.approx((8 - 2) / 10)
    assert (spearman(a, -a), kendall(a, a * 10)) == (pytest.approx(-1), pytest.approx(1))


def test_ties_lower_tau_b_and_rows_that_are_all_the_same_have_none():
    # 5 of 6 pairs differ in a, all in b, of which 5 agree: 5 / sqrt(5 * 6)
    assert kendall(np.array([1, 1, 2, 3.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(5 / np.sqrt(30))
    assert np.isnan(kendall(np.ones(3), np.arange(3.0)))
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def earned(*means: float, flip: bool = False, spread: float = 1.0) -> dict[str, Returns]:
    """Policies whose returns scatter about means, in dreams with a luck of their own or upside down."""
    rng, sign = np.random.default_rng(0), -1 if flip else 1
    drawn = {i: rng.normal(mean, spread, (2, 20)) for i, mean in enumerate(means)}
    return {f"policy {i}": Returns(real.tolist(), (sign * dream).tolist()) for i, (real, dream) in drawn.items()}


def by_name(returns: dict[str, Returns]) -> dict:
    found = ranking_findings.findings_of(returns, ranking.Config())
    return {m.name: m for m in found.measures if m.of == "dream"}


@pytest.mark.parametrize(("flip", "value"), [(False, 1), (True, -1)])
def test_a_dream_that_pays_as_reality_does_ranks_alike_and_one_upside_down_against_it(flip, value):
    made = by_name(earned(0, 5, 10, 15, flip=flip))
    for name in ("Spearman's rank correlation", "Kendall's rank correlation (tau-b)"):
        assert (made[name].value, made[name].low, made[name].high) == (pytest.approx(value),) * 3
    assert made["pairs in the right order"].value == (not flip)


def test_policies_that_hardly_differ_have_a_wide_interval_and_no_pairs_to_order():
    made = by_name(earned(0, 0.01, 0.02, spread=5))
    rho = made["Spearman's rank correlation"]
    assert rho.high - rho.low >= 0.5
    assert made["pairs in the right order"].value is None


def test_dreams_begin_with_the_real_frame_and_pay_until_they_end(tmp_path, monkeypatch):
    engine = Engine(load(make_world(tmp_path), dtype="float32"), max_worlds=GROUP, deterministic=False)
    game = RealGame(SQUARE, engine.spec, 1)
    player = make_player("noop", engine.spec)
    episodes = list(game.follow([player], range(3), 4, "test"))
    game.close()
    ends, opened, count = {0: 2, 1: 5, 2: 99}, [], {}
    start, step = engine.open, engine.step
    monkeypatch.setattr(engine, "open", lambda given, seed: (opened.append(given), start(given, seed))[1])

    def pays_one(worlds, conditions):
        blocks = []
        for world, block in zip(worlds, step(worlds, conditions), strict=True):
            number = count.setdefault(id(world), [len(count), 0])
            number[1] += 1
            blocks.append(
                Block(block.pictures, 1.0, 0.0, number[1] >= ends[number[0]], block.variables, block.expected)
            )
        return blocks

    monkeypatch.setattr(engine, "step", pays_one)
    assert ranking.dream_returns(engine, player, episodes, limit=7) == [2, 5, 7]
    for given, episode in zip(opened, episodes, strict=True):
        assert (given.frames == episode.frames[:1]).all()


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_returns_from_elsewhere_are_ranked_without_playing(tiny, tmp_path, capsys):
    given = {name: {"real": r.real, "dream": r.dream} for name, r in earned(0, 5, 10).items()}
    path = write(tmp_path / "returns.json", given)
    out = ["--world", str(tiny), "--out", str(tmp_path / "out"), "--dtype", "float32"]
    assert main(["ranking", *out, "--returns", str(path), "--policies"]) == 0
    assert "Spearman's rank correlation" in capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert data["measures"][0]["value"] == 1
    assert [row[0] for row in data["tables"][0]["rows"]] == ["policy 2", "policy 1", "policy 0"]
    assert (tmp_path / "out" / "ranking.png").is_file()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"real": [1, 2], "dream": [1]}}, "as many of both"),
        ({"a": {"real": [1, 2]}}, "policy 'a'"),
        ({"a": {"real": [1, "x"], "dream": [1, 2]}}, "list of at least 2 numbers"),
        ([1, 2], "expected {"),
        ({"a": {"real": [1, 2], "dream": [1, 2]}}, "1 policies"),
    ],
)
def test_returns_that_say_something_else_are_refused(tiny, tmp_path, capsys, data, message):
    path = write(tmp_path / "returns.json", data)
    assert main(["ranking", "--world", str(tiny), "--returns", str(path), "--policies"]) == 2
    assert message in capsys.readouterr().err
