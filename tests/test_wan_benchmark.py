"""The benchmark of published models: its baseline computes what the engine does, its rows hold what they promise, and
on a GPU the host waits for nothing inside a block."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import wan
from benchmarks.models import random_model, spec_of
from benchmarks.wan_baseline import Baseline, OneByOne
from benchmarks.wan_contenders import Marks
from engine import PRESETS, Condition, Engine, Start, noise

CPU = torch.device("cpu")
MACHINE = {"cpu", "threads", "torch", "commit", "load"}


def tiny(window: int, sink: int, codec: str = "vae", device=CPU, dtype=torch.float32, numerics: str = "published"):
    run = replace(PRESETS["self-forcing"], window=window, sink=sink)
    spec = spec_of("tiny", run, codec, (32, 48), numerics)
    return random_model(spec, codec, device, dtype)


def prompt(model, seed: int = 0):
    sizes = model.spec.denoiser
    made = torch.randn(5, sizes.text_width, generator=torch.Generator().manual_seed(seed))
    return made.to(model.device, model.dtype)


def steps(sim, world):
    frames = sim.spec.frames_at(world.table.length)
    return Condition.of(np.zeros((frames, 0), np.float32))


@pytest.mark.parametrize(("window", "sink"), [(21, 0), (6, 0), (9, 2), (12, 3)])
@pytest.mark.parametrize("numerics", ["published", "fast"])
def test_baseline_and_engine_compute_the_same_latents(window, sink, numerics):
    model = tiny(window, sink, "preview", numerics=numerics)
    sim = Engine(model)
    text = prompt(model)
    world = sim.open(Start.of(sim.contextualise(text=text)), seed=3)

    def drawn(block, draw, shape):
        return noise.normals(3, block, draw, shape[1:])[None]

    base = Baseline(model.denoiser, model.spec.rollout, window, sink, text, drawn)
    for _ in range(window // 3 + 3):
        sim.step([world], [steps(sim, world)])
        latents = base.step(3, model.spec.latent)
        assert latents.std() > 0.1
        torch.testing.assert_close(latents[0], world.latents[-3:], atol=1e-4, rtol=0)


def test_one_latent_at_a_time_decodes_what_the_engine_does():
    model = tiny(21, 0)
    latents = torch.randn(1, 7, *model.spec.latent, generator=torch.Generator().manual_seed(0))
    theirs, states = OneByOne(model.codec), None
    with torch.inference_mode():
        for part in latents.split([3, 3, 1], dim=1):
            frames, states = model.codec.decode(part, states)
            other = theirs.decode(part)
            assert other.shape == frames.shape
            assert (other.int() - frames.int()).abs().max() <= 1
    assert theirs.source == "diffusers"


def test_without_diffusers_the_own_codec_decodes_latent_by_latent(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    model = tiny(21, 0)
    theirs = OneByOne(model.codec)
    latents = torch.randn(1, 3, *model.spec.latent)
    assert theirs.source != "diffusers"
    assert (theirs.decode(latents).int() - model.codec.decode(latents)[0].int()).abs().max() <= 1


def test_every_part_gives_a_row_and_a_second_run_measures_nothing(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "wan.json"
    config = wan.WanConfig(tiny=True, windows=(6, 12), codecs=("vae",), blocks=3, rounds=2, out=out)
    rows = wan.run(config)
    assert [(row["part"], row["window"], row["sink"]) for row in rows] == [
        ("first", 6, 0),
        ("blocks", 6, 0),
        ("blocks", 12, 3),
        ("codec", 6, 0),
    ]
    first, blocks, _, codec = rows
    assert all(row.keys() >= MACHINE for row in rows)
    assert first["warm_ms"] > 0 < first["cold_ms"]
    assert blocks["ratio_end_to_end"] == pytest.approx(blocks["baseline_p50_ms"] / blocks["engine_p50_ms"])
    assert blocks["engine_denoise_p50_ms"] + blocks["engine_decode_p50_ms"] < 2 * blocks["engine_p99_ms"]
    assert blocks["engine_fps"] == pytest.approx(12e3 / blocks["engine_p50_ms"])
    assert codec["baseline_by"] == "diffusers"
    assert json.loads(out.read_text()) == rows

    monkeypatch.setattr(wan, "measure_blocks", None)
    assert wan.run(config) == rows
    assert capsys.readouterr().out.count("done already") == 4


def test_a_run_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "wan.json"
    config = wan.WanConfig(tiny=True, windows=(6,), codecs=("tiny",), blocks=1, rounds=1, baseline=False, out=out)
    wan.run(replace(config, parts=("codec",)))
    monkeypatch.setattr(wan, "measure_first", lambda bench: {"cold": bench.cold})
    monkeypatch.setattr(wan, "measure_blocks", lambda bench: {"cold": bench.cold})
    rows = wan.run(config)
    assert [(row["part"], row.get("cold")) for row in rows] == [("codec", None), ("first", True), ("blocks", False)]


def test_operations_are_those_of_the_plan():
    bench = wan.WanConfig(device="cpu").bench(21, "vae", cold=False)
    assert bench.denoise_flops == 202_034_750_423_040
    assert bench.decode_flops == 40_650_001_367_040
    assert wan.WanConfig(device="cpu").bench(12, "tiny", cold=False).denoise_flops == 141_478_994_903_040


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ()}, "expected at least one part"),
        ({"blocks": 0}, "expected at least one part"),
        ({"windows": (21, 2)}, "expected 3 or more"),
    ],
)
def test_settings_that_measure_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        wan.WanConfig(**options)


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "other.json").write_text('{"a": 1}')
    monkeypatch.setattr("sys.argv", ["wan", "--tiny", "--out", str(tmp_path / "other.json")])
    with pytest.raises(SystemExit, match="holds no rows of this benchmark"):
        wan.main()
    monkeypatch.setattr("sys.argv", ["wan", "--device", "gpu"])
    with pytest.raises(SystemExit, match="error: device"):
        wan.main()


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def opened(model, num_worlds: int, **options):
    """An engine with worlds whose windows are full and have moved, each under a prompt of its own."""
    sim = Engine(model, max_worlds=num_worlds, **options)
    contexts = [sim.contextualise(text=prompt(model, seed)) for seed in range(num_worlds)]
    worlds = [sim.open(Start.of(context), seed) for seed, context in enumerate(contexts)]
    for _ in range(5):
        sim.step(worlds, [steps(sim, world) for world in worlds])
    return sim, worlds


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("num_worlds", "codec"), [(1, "vae"), (3, "vae"), (1, "tiny"), (3, "tiny")])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("mark", [pytest.param(None, marks=gpu)], ids=["cuda"])
def test_the_host_waits_for_nothing_inside_a_block(mark, num_worlds, codec, deterministic, paged):
    model = tiny(9, 3, codec, torch.device("cuda"), torch.bfloat16)
    sim, worlds = opened(model, num_worlds, deterministic=deterministic, paged=paged)
    conditions = [steps(sim, world) for world in worlds]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        blocks = [sim.step(worlds, conditions) for _ in range(2)][-1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(block.pictures.is_cuda for block in blocks)
    assert all(block.frames.std() > 0 for block in blocks)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=gpu)], ids=["cuda"])
def test_marks_on_a_gpu_are_seconds(mark):
    marks = Marks(torch.device("cuda"))
    for _ in range(3):
        marks.add()
        torch.cuda._sleep(10**7)
    torch.cuda.synchronize()
    assert len(marks.seconds()) == 2
    assert marks.made == []
