"""The benchmarks run, in a tiny world, and their rows hold what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import kv, many_worlds, step
from benchmarks.machine import describe
from engine.hardware import default_dtype
from tests.sims import footage, make_engine

MACHINE = {"cpu", "threads", "torch", "commit", "load"}
# A page of the tiny world: keys and values of 2 layers, 4 tokens, 2 heads of width 16.
CODES = 2 * 2 * 4 * 2 * 16


@pytest.fixture(scope="module")
def rows_by_n(tiny: Path) -> list[dict]:
    return many_worlds.run(many_worlds.ManyWorldsConfig(str(tiny), worlds=(1, 3), world_steps=4, least=2, rounds=2))


@pytest.fixture(scope="module")
def rows_of_kv(tiny: Path) -> list[dict]:
    return kv.run(kv.KVConfig(str(tiny), forks=3, rollouts=2, horizons=(1, 6), steps=4, rounds=2, top_k=2, memory=8))


def part(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["part"] == name]


def test_a_step_gives_a_row(tiny):
    row = step.run(step.StepConfig(str(tiny), steps=10, uncached=10))
    assert row.keys() >= MACHINE | {"p50_ms", "p99_ms", "speedup_over_uncached", "speedup_over_fp32", "commit_ms"}
    assert row["passes"] == "2+1"


def test_many_worlds_give_a_row_for_each_n(rows_by_n):
    assert [(row["worlds"], row["steps"]) for row in rows_by_n] == [(1, 4), (3, 2)]
    for row in rows_by_n:
        assert row.keys() >= MACHINE
        for name in ("deterministic", "fast", "separate"):
            assert row[f"{name}_world_steps_per_s"] == pytest.approx(1e3 * row["worlds"] / row[f"{name}_p50_ms"])
            assert row[f"{name}_p99_ms"] >= row[f"{name}_p50_ms"] > 0
        speedup = row["separate_p50_ms"] / row["fast_p50_ms"]
        assert row["fast_speedup_over_separate"] == pytest.approx(speedup)


def test_many_worlds_are_full_share_no_page_and_one_pool_is_smaller_than_many(rows_by_n):
    page = CODES * default_dtype(torch.device("cpu")).itemsize
    for row in rows_by_n:
        assert {row[f"{x}_kv_bytes"] for x in ("deterministic", "fast", "separate")} == {row["worlds"] * 4 * page}
    assert rows_by_n[1]["fast_kv_bytes_allocated"] < rows_by_n[1]["separate_kv_bytes_allocated"]
    assert rows_by_n[0]["fast_kv_bytes_allocated"] == rows_by_n[0]["separate_kv_bytes_allocated"]


def test_ways_take_turns():
    calls = []
    ways = {name: lambda name=name: calls.append(name) or 0.5 for name in ("a", "b")}
    assert many_worlds.interleaved(ways, 5, 2) == {"a": [0.5] * 5, "b": [0.5] * 5}
    assert "".join(calls) == "aabbaaabbb"


def test_forks_take_no_bytes_until_they_step(rows_of_kv):
    [row] = part(rows_of_kv, "fork")
    assert row.keys() >= MACHINE | {"fork_us", "copy_us", "speedup_over_copy"}
    assert row["fork_bytes_until_commit"] == 0
    assert row["copy_bytes"] == 4 * row["fork_bytes_after_one_step"] > 0


def test_precision_gives_bytes_errors_and_drift(rows_of_kv):
    rows = {row["pages"]: row for row in part(rows_of_kv, "precision")}
    plain, coarse, fine = rows["as computed"], rows["int8 per head"], rows["int8 per channel"]
    assert list(rows) == [*kv.STORED, "other precision"]
    assert plain["psnr_1"] is plain["psnr_6"] is None
    assert plain["key_relative_rms"] == plain["value_relative_rms"] == 0
    assert coarse["bytes_per_latent_frame"] == CODES + 2 * 2 * 2 * 2
    assert 0 < fine["key_relative_rms"] < coarse["key_relative_rms"] < rows["fp8 per head"]["key_relative_rms"] < 0.05
    assert fine["value_relative_rms"] == coarse["value_relative_rms"]
    assert all(row["psnr_6"] > 30 for name, row in rows.items() if name != "as computed")
    assert rows["other precision"]["dtype"] != plain["dtype"]


def test_access_and_offload_give_rows(rows_of_kv):
    [access] = part(rows_of_kv, "access")
    assert access.keys() >= {"range_us", "gather_us", "join_range_us", "join_gather_us", "join_cat_us"}
    window, memory, away = part(rows_of_kv, "offload")
    assert [row["history"] for row in (window, memory, away)] == ["window", "memory", "offloaded"]
    assert memory["device_bytes"] == 3 * window["device_bytes"]
    assert away["device_bytes"] == window["device_bytes"]
    assert away["host_bytes"] == 2 * window["device_bytes"]
    assert away["same_frames_as_memory"]
    assert window["host_bytes"] == memory["host_bytes"] == 0


def test_the_reconstruction_error_is_that_of_the_codes():
    sim = make_engine()
    pages = sim.open(footage(3), seed=0).table.pages
    for store in sim.pool.shelf.layers:
        for x in store.raw().values():  # where 127 sets the scale, to 1 + 2^-10, a half is rounded to nothing
            x.fill_(0.5)
            x[:, 0, :, 0] = 127.0
    size = CODES // 2 // 2 // 2  # numbers that share a scale: of one page, layer and head
    error = ((127 * 2**-10) ** 2 + (size - 1) * 0.5**2) / (127**2 + (size - 1) * 0.5**2)
    assert kv.reconstruction_error(sim.pool, pages, None, True) == (0, 0)
    assert kv.reconstruction_error(sim.pool, pages, "int8", False) == pytest.approx((error**0.5, error**0.5))
    assert kv.reconstruction_error(sim.pool, pages, "int8", True)[0] < error**0.5 / 3


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (many_worlds.ManyWorldsConfig, {"worlds": ()}),
        (many_worlds.ManyWorldsConfig, {"worlds": (0, 1)}),
        (kv.KVConfig, {"parts": ()}),
        (kv.KVConfig, {"horizons": (0, 4)}),
    ],
)
def test_settings_that_measure_nothing_are_refused(config, changes):
    with pytest.raises(ValueError, match="expected at least one"):
        config(**changes)


def test_the_commands_write_rows_and_a_plot(tiny, tmp_path, monkeypatch, capsys):
    common = ["--world", str(tiny), "--rounds", "1", "--out", str(tmp_path / "new" / "rows.json")]
    plot = ["--worlds", "1", "2", "--world-steps", "2", "--least", "1", "--plot", str(tmp_path / "plot.png")]
    monkeypatch.setattr("sys.argv", ["many_worlds", *common, *plot])
    many_worlds.main()
    assert [row["worlds"] for row in json.loads((tmp_path / "new" / "rows.json").read_text())] == [1, 2]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000
    monkeypatch.setattr("sys.argv", ["kv", *common, "--parts", "access", "fork", "--forks", "2"])
    kv.main()
    rows = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert [row["part"] for row in rows] == ["access", "fork"]
    assert rows[0]["cpu"] == describe()["cpu"]
    assert "join_cat_us" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["kv", "--world", "nowhere"])
    with pytest.raises(SystemExit, match="error: no world 'nowhere'"):
        kv.main()
