"""The plan of a published world: formulas equal to what the engine's own parts count, and known sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import plan
from benchmarks.formulas import parameters
from benchmarks.models import MODELS
from benchmarks.plan import PlanConfig

TINY = {"model": "tiny", "height": 32, "width": 48}


@pytest.mark.parametrize(
    "config",
    [
        PlanConfig(**TINY),
        PlanConfig(**TINY, window=8, sink=2, batch=3, kv_dtype="int8", codec="tiny"),
        PlanConfig("longlive-infinity", **TINY, dtype="float32", kv_dtype="fp8"),
        PlanConfig("matrix-game-2-universal", height=32, width=32, codec="tiny"),
        PlanConfig("matrix-game-2-templerun", height=32, width=32, codec="tiny", batch=2),
    ],
    ids=lambda c: f"{c.preset}-{c.codec}-{c.kv_dtype}",
)
def test_formulas_equal_counts(config, monkeypatch):
    for name, sizes in MODELS.items():
        if sizes.actions:  # two layers, one of them with an action module: full ones take a while
            fewer = replace(sizes, layers=2, actions=replace(sizes.actions, layers=(0,)))
            monkeypatch.setitem(MODELS, name, fewer)
    row, checks = plan.plan(config)
    assert [c.name for c in checks if c.formula != c.counted] == []
    assert row["flops_per_block"] == sum(row[f"{x}_flops"] for x in ("attention", "context", "linear", "codec"))
    assert row["peak_bytes"] > row["weight_bytes"] + row["pool_bytes"]


def test_full_size_is_the_published_one():
    row, checks = plan.plan(PlanConfig())
    assert [c.name for c in checks if c.formula != c.counted] == []
    assert row["denoiser_parameters"] == 1_418_996_800
    assert row["kv_bytes_per_latent_frame"] == 2 * 30 * 1560 * 1536 * 2
    assert row["lower_bound_ms"] == pytest.approx(row["flops_per_block"] / 989e12 * 1e3)
    assert parameters(MODELS["t2v-14b"]) == 14_288_491_584
    assert parameters(replace(MODELS["t2v-14b"], in_channels=36, image_tokens=257)) == 16_394_878_784


def test_what_a_setting_does_to_the_bytes():
    base, _ = plan.plan(PlanConfig(**TINY))
    many, _ = plan.plan(PlanConfig(**TINY, batch=4))
    codes, _ = plan.plan(PlanConfig(**TINY, kv_dtype="int8"))
    assert many["context_bytes"] == 4 * base["context_bytes"]
    assert many["weight_bytes"] == base["weight_bytes"]
    assert many["flops_per_block"] == 4 * base["flops_per_block"]
    assert base["kv_bytes_of_the_window"] > 1.7 * codes["kv_bytes_of_the_window"]
    assert 0 < base["pass_activation_bytes"] < many["pass_activation_bytes"] <= 4 * base["pass_activation_bytes"]


def test_the_command_prints_a_table_and_writes_a_row(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "plan.json"
    options = ["--model", "tiny", "--height", "32", "--width", "32", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["plan", *options])
    plan.main()
    assert "lower bound ms" in capsys.readouterr().out
    assert json.loads(out.read_text())["preset"] == "self-forcing"
    monkeypatch.setattr("sys.argv", ["plan", *options, "--json"])
    plan.main()
    assert json.loads(capsys.readouterr().out)["disagree"] == []


def test_a_wrong_formula_is_named_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(plan, "context_bytes", lambda spec, itemsize: 7)
    monkeypatch.setattr("sys.argv", ["plan", "--model", "tiny", "--height", "32", "--width", "32"])
    with pytest.raises(SystemExit, match="disagree on context bytes"):
        plan.main()
    assert "NOT EQUAL: counted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "self-force"}, "Did you mean 'self-forcing'"),
        ({"model": "t2v-2b"}, "expected one of t2v-1.3b"),
        ({"window": 2}, "expected at least 3"),
        ({"batch": 0}, "expected 1 or more"),
        ({"codec": "jpeg"}, "expected 'vae' or 'tiny'"),
        ({"kv_dtype": "int4"}, "expected None or one of"),
        ({"dtype": "float8"}, "expected one of"),
        ({"height": 100}, "multiples of 16"),
        ({"preset": "matrix-game-2-universal", "model": "t2v-1.3b"}, "no Matrix-Game"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan.plan(PlanConfig(**options))
