"""The benchmark of MAGI-1: its baseline computes what the engine does, its rows hold what they promise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import magi
from benchmarks.magi_baseline import Baseline, one_by_one
from benchmarks.magi_contenders import network_of
from benchmarks.magi_plan import preset_of
from benchmarks.models import magi_spec_of, random_magi
from engine import PRESETS, Condition, Engine, Start, noise
from engine.conditioners.magi_text import NULL_TOKENS

CPU = torch.device("cpu")
MACHINE = {"cpu", "threads", "torch", "commit", "load"}


def tiny(kind: str, steps: int, flight: int, codec: str = "preview", **changes):
    """A tiny model of random weights; `changes` are the rollout's."""
    preset = preset_of(PRESETS[f"magi-4.5b-{kind}"], steps, flight)
    preset = replace(preset, rollout=replace(preset.rollout, **changes), block=2)
    return random_magi(magi_spec_of("magi-tiny", preset, (32, 48)), codec, CPU, torch.float32)


def baseline(model, text, chunks: int, behind: int = 0) -> Baseline:
    spec, network = model.spec, network_of(model)
    null = network.y_embedder.null_caption_embedding[:NULL_TOKENS]
    drawn = lambda chunk, shape: noise.normals(3, chunk, 0, shape)  # noqa: E731
    return Baseline(network, spec.staggered, spec.block, spec.latent, text, null, drawn, chunks, behind)


@pytest.mark.parametrize(
    ("kind", "steps", "flight", "changes"),
    [
        ("base", 8, 4, {}),
        ("base", 4, 1, {}),
        ("base", 4, 2, {"ranges": (), "clean_range": None}),
        ("distill", 8, 4, {}),
        ("distill", 12, 4, {}),
        ("distill", 4, 1, {"clean_range": 2}),
        ("distill", 8, 2, {"ranges": (3, 2), "near_clean": 0.05, "near_clean_weight": 0.4}),
    ],
)
def test_baseline_and_engine_compute_the_same_latents(kind, steps, flight, changes):
    model = tiny(kind, steps, flight, **changes)
    sim = Engine(model)
    text = torch.randn(5, model.spec.denoiser.text_width, generator=torch.Generator().manual_seed(0))
    world = sim.open(Start.of(sim.contextualise(text=text)), seed=3)
    base = baseline(model, text, chunks=4 + flight + 1)
    for _ in range(4):
        sim.step([world], [Condition.of(np.zeros((8, 0), np.float32))])
        latents = base.step()
        assert latents.std() > 0.1
        # Guidance weighs differences of three predictions by up to 7.5, and their rounding with them.
        torch.testing.assert_close(latents, world.latents, atol=3e-3 if kind == "base" else 1e-3, rtol=0)


def test_a_baseline_with_a_past_makes_as_many_chunks_and_copies_more():
    model = tiny("distill", 4, 2)
    text = torch.randn(5, model.spec.denoiser.text_width, generator=torch.Generator().manual_seed(0))
    base = baseline(model, text, chunks=9, behind=4)
    read, stops = base.cache.read, set()
    base.cache.read = lambda layer, stop: stops.add(stop) or read(layer, stop)
    assert torch.isfinite(torch.stack([base.step() for _ in range(3)])).all()
    chunk = model.spec.block * model.spec.stream.tokens
    assert stops == {n * chunk for n in range(4, 7)}  # all there is, whatever is seen of it


def test_one_tile_at_a_time_decodes_what_the_engine_does():
    model = tiny("distill", 8, 4, "vae")
    latents = torch.randn(1, 6, model.spec.latent[0], 8, 9, generator=torch.Generator().manual_seed(0))
    single = one_by_one(model.codec)
    assert (single.tiles_at_once, model.codec.tiles_at_once) == (1, 4)
    with torch.inference_mode():
        one, other = (vae.decode(latents)[0].int() for vae in (single, model.codec))
    assert one.shape == (1, 24, 64, 72, 3)
    assert (one - other).abs().max() <= 1


def test_every_setting_gives_a_row_and_a_second_run_measures_nothing(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "magi.json"
    config = magi.MagiBenchConfig(tiny=True, steps=(4,), flights=(2, 1), chunks=2, rounds=2, behind=1, out=out)
    rows = magi.run(config)
    assert [(row["steps"], row["in_flight"]) for row in rows] == [(4, 2), (4, 1)]
    for row in rows:
        assert row.keys() >= MACHINE
        whole, parts = "engine_seconds_per_video_second", ("engine_denoise_per_video_second", "engine_first_s")
        assert row[whole] == pytest.approx(row["engine_p50_ms"] / 1e3)  # a chunk is a second of video
        assert all(row[part] > 0 for part in parts)
        assert row["ratio_end_to_end"] == pytest.approx(row["baseline_seconds_per_video_second"] / row[whole])
        assert 0 < row["engine_decode_per_video_second"] < row[whole]
    assert json.loads(out.read_text()) == rows

    monkeypatch.setattr(magi, "measure", None)
    assert magi.run(config) == rows
    assert capsys.readouterr().out.count("done already") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": ()}, "expected some steps"), ({"chunks": 0}, "counts from 1"), ({"behind": -1}, "0 or more behind")],
)
def test_settings_that_measure_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        magi.MagiBenchConfig(**options)


def test_the_command_says_what_is_wrong(monkeypatch):
    monkeypatch.setattr("sys.argv", ["magi", "--tiny", "--steps", "6"])
    with pytest.raises(SystemExit, match="error: num_steps 6, window 4"):
        magi.main()
    monkeypatch.setattr("sys.argv", ["magi", "--device", "cpu", "--model", "magi-2b"])
    with pytest.raises(SystemExit, match="error: model 'magi-2b'"):
        magi.main()
    monkeypatch.setattr("sys.argv", ["magi", "--device", "gpu"])
    with pytest.raises(SystemExit, match="error: device"):
        magi.main()
