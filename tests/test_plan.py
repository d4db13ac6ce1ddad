"""The plan of a published world: formulas equal to what the engine's own parts count, and known sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import magi_plan, plan
from benchmarks.formulas import magi_flops, magi_parameters, magi_weight_bytes, parameters
from benchmarks.models import MAGI_MODELS, MODELS, magi_spec_of, random_magi
from benchmarks.plan import PlanConfig
from engine import PRESETS, Condition, Engine, Start

TINY = {"model": "tiny", "height": 32, "width": 48}
MAGI = {"model": "magi-tiny", "height": 32, "width": 48}


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
        ({"preset": "magi-4.5b-base", "window": 12}, "leave window, sink, codec out"),
        ({"preset": "magi-4.5b-base", "codec": "tiny"}, "leave window, sink, codec out"),
        ({"preset": "magi-4.5b-base", "steps": 10}, "num_steps 10, window 4"),
        ({"preset": "magi-4.5b-base", "model": "t2v-1.3b"}, "expected one of magi-4.5b"),
        ({"preset": "magi-24b-base", "model": "magi-24b-fp8"}, "only distilled models were quantised"),
        ({"steps": 8}, "of MAGI-1's presets"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan.plan(PlanConfig(**options))


# ---- MAGI-1


@pytest.mark.parametrize(
    "config",
    [
        PlanConfig("magi-4.5b-distill-8step", **MAGI),
        PlanConfig("magi-4.5b-base", **MAGI, steps=4, flight=1, dtype="float32"),
        PlanConfig("magi-4.5b-base", **MAGI, steps=4, batch=2, kv_dtype="int8"),
    ],
    ids=lambda c: f"{c.preset}-{c.flight}-{c.kv_dtype}",
)
def test_formulas_of_magi_equal_counts(config):
    row, checks = plan.plan(config)
    assert [c for c in checks if c.formula != c.counted] == []
    assert row["flops_per_block"] == sum(row[f"{x}_flops"] for x in ("attention", "context", "linear", "codec"))
    assert row["flops_per_video_second"] == row["flops_per_block"]  # a block is a second
    assert row["peak_bytes"] > row["weight_bytes"] + row["pool_bytes"]


@pytest.mark.parametrize(("kind", "flight"), [("base", 4), ("base", 2), ("distill", 4), ("distill", 1)])
def test_planned_operations_of_magi_are_those_of_a_step(kind, flight):
    """The engine itself steps, under a counter (of products: a CPU's attention is none): all passes of a chunk."""
    spec = magi_spec_of("magi-tiny", magi_plan.preset_of(PRESETS[f"magi-4.5b-{kind}"], 8, flight), (32, 48))
    sim = Engine(random_magi(spec, "preview", torch.device("cpu"), torch.float32), deterministic=False)
    world = sim.open(Start.of(sim.contextualise(text=torch.randn(7, spec.denoiser.text_width))), seed=0)
    none = Condition.of(torch.zeros(24, 0).numpy())
    for _ in range(1 + magi_plan.Step.of(spec).history):
        sim.step([world], [none])
    with FlopCounterMode(display=False) as counter:
        sim.step([world], [none])
    made = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in made.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert products == magi_plan.Step.of(spec, tokens=7).total["linear_flops"]


def test_sizes_of_magi_are_the_published_ones():
    """Parameters, bytes of K/V and operations as others counted them: PFLOP a chunk and step at a mean range of 3.5."""
    small, large = MAGI_MODELS["magi-4.5b"], MAGI_MODELS["magi-24b"]
    assert [round(magi_parameters(s) / 1e9, 2) for s in (small, large)] == [4.46, 23.9]
    gib = [magi_weight_bytes(replace(s, fp8=fp8), 2) / 2**30 for fp8 in (False, True) for s in (small, large)]
    assert gib == pytest.approx([8.31, 44.5, 4.8, 24.6], rel=0.01)
    for sizes, tokens, linear, attention in (
        (small, 2025, 0.11, 0.22),
        (small, 3600, 0.19, 0.68),
        (large, 3600, 1.03, 1.93),
    ):
        products, keys, _ = magi_flops(sizes, tokens, 6, 2, (3, 4), 0)
        assert keys / 4e15 == pytest.approx(attention, rel=0.03)
        # As if each token went through all parameters; those of prompts and gates are read once a prompt, and a chunk.
        everything = 2 * magi_parameters(sizes) * 6 * tokens
        assert everything / 1e15 == pytest.approx(linear, rel=0.05)
        assert 0.9 < products / 4 / everything < 1
    for name, size, kv in (
        ("4.5b", (720, 720), 1.58),
        ("4.5b", (720, 1280), 2.8),
        ("24b", (720, 720), 2.22),
        ("24b", (720, 1280), 3.96),
    ):
        spec = magi_spec_of(f"magi-{name}", PRESETS[f"magi-{name}-base"], size)
        assert 6 * spec.stream.page_bytes(2) / 2**30 == pytest.approx(kv, rel=0.01)


def test_more_steps_cost_operations_and_no_bytes():
    specs = [
        magi_spec_of("magi-24b", magi_plan.preset_of(PRESETS["magi-24b-distill"], n, 4), None) for n in (8, 16, 64)
    ]
    assert {spec.kv for spec in specs} == {specs[0].kv}
    flops = [magi_plan.work(magi_plan.Step.of(spec), 1, 1)["flops_per_block"] for spec in specs]
    passes = [(f - flops[0]) / (flops[1] - flops[0]) for f in flops]
    assert passes == pytest.approx([0, 1, 7], rel=1e-3)  # every further eighth of the steps costs the same


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["magi-4.5b-distill-8step", "magi-24b-distill-8step", "magi-24b-base"])
def test_full_magi_is_counted_too_and_one_h200_holds_it(preset):
    row, checks = plan.plan(PlanConfig(preset, height=720, width=1280))
    assert [c for c in checks if c.formula != c.counted] == []
    assert row["one_h200"].startswith("yes")


def test_ranges_without_an_end_have_no_plan():
    preset = PRESETS["magi-4.5b-distill-8step"]
    endless = replace(preset, rollout=replace(preset.rollout, ranges=(), clean_range=None))
    with pytest.raises(ValueError, match="give it ranges"):
        magi_plan.Step.of(magi_spec_of("magi-tiny", endless, (32, 48)))
