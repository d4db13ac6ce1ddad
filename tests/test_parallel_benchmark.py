"""What measures several ranks, and what plans them: bytes to the byte, ranks in order, errors in words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from benchmarks import kernels, parallel, plan, plan_ranks
from benchmarks.devices import block_seconds, calibrated
from benchmarks.machine_file import read_machine
from benchmarks.parallel import ParallelConfig
from benchmarks.rank_decoding import SMALL, codecs, one
from benchmarks.rank_kernels import Timer, full, rows
from benchmarks.rank_report import decode_table, failures, misranked, same_bytes, table
from benchmarks.rank_runs import measured
from benchmarks.rank_worlds import Case, case_of, grouped, wan
from engine.parallel.layout import Exchange, Numbers
from engine.parallel.links import published
from engine.parallel.prices import Setting, price
from tests.ranks import run

TIMER = Timer(torch.device("cpu"), torch.float32, 1)


def tiny(name: str) -> Case:
    """Of nine tokens a latent frame."""
    spec = wan(3) if name == "wan" else grouped()
    return Case(name, replace(spec, frame=(48, 48)))


@torch.inference_mode()
def measured_on(rank: int, name: str) -> dict[str, Any]:
    return measured(tiny(name), TIMER.device, TIMER.dtype, 1)


@pytest.mark.parametrize("name", ["wan", "grouped"])
def test_every_exchange_is_measured_and_sends_what_the_formula_says(name):
    first, second = run(measured_on, name)
    assert [e["exchange"] for e in first["exchanges"]] == [
        "one rank", "Ulysses 2", "ring pass-KV 2", "ring pass-Q 2", "all-gather of new K/V 2"
    ]  # fmt: skip
    for e in first["exchanges"]:
        assert same_bytes(e), e
        assert e["calls"] == e["predicted_calls"]
        assert e["off"] < 1e-4
        assert e["ms"] > 0 < e["predicted_ms"]
    assert first["regret"] >= 0
    assert first["pick"] == second["pick"]
    alone, ulysses, ring, *_ = first["exchanges"]
    assert ulysses["cache_bytes"] == alone["cache_bytes"] // 2
    assert ring["cache_bytes"] < 0.6 * alone["cache_bytes"]
    assert first["pick"] in table(first)


@torch.inference_mode()
def decoded_on(rank: int, name: str) -> dict[str, Any]:
    size = {"wan": (3, 16, 4, 4), "taehv": (3, 16, 4, 4), "magi": (3, 16, 6, 6)}[name]
    return one(name, codecs(True)[name], size, TIMER.device, TIMER.dtype, 1)


@pytest.mark.parametrize("name", SMALL)
def test_decoding_is_measured_and_sends_what_the_formula_says(name):
    row, _ = run(decoded_on, name)
    assert same_bytes(row)
    assert row["levels_off"] <= 1
    assert name in decode_table([row])


def exchange(name: str, ms: float, predicted: float, sent: int = 8) -> dict[str, Any]:
    return {"exchange": name, "ms": ms, "predicted_ms": predicted, "sent_bytes": [sent], "predicted_bytes": [8],
            "calls": 3, "cache_bytes": 10, "held_bytes": 2e9, "predicted_held_bytes": 3e9, "off": 0.0}  # fmt: skip


def test_what_is_not_as_the_formulas_say_is_named():
    rows_ = [exchange("a", 10, 10), exchange("b", 9, 14), exchange("c", 8, 16)]
    case = {"case": "x", "new": 1, "history": 2, "pick": "a", "regret": 0.25, "exchanges": rows_}
    assert misranked(case) == ["error: x: c took 8.0 ms and a 10.0, by formula 16.0 and 10.0"]
    assert "25 % slower than the best" in table(case)
    assert "2.00 (3.00)" in table(case)
    wrong = {"cases": [{**case, "exchanges": [exchange("d", 1, 1, sent=9)]}], "decode": []}
    assert failures(wrong) == ["error: x, d sent [9], by formula [8]"]
    assert "(!)" in table(wrong["cases"][0])


def test_a_device_is_measured_so_that_one_rank_takes_what_it_took(tmp_path, monkeypatch, capsys):
    case = tiny("wan")
    machine = calibrated(TIMER, case, block_seconds(TIMER, case))
    assert machine.measured
    made = rows(TIMER, case.spec, (1, 2, 3))
    assert [r["exchange"] for r in made] == ["one rank", "Ulysses 2", "ring pass-KV 2", "Ulysses 3", "ring pass-KV 3"]
    assert [r["tokens"] for r in made] == [27, 15, 15, 9, 9]
    setting = Setting(case.spec, published("nvlink4", 1), 1e12, machine, Numbers(4))
    assert price(setting, [full(case.spec)], Exchange()).seconds < 10
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(asdict(machine)))
    assert read_machine(path) == machine
    monkeypatch.setattr("sys.argv", ["plan_ranks", "--machine", str(path), "--preset", "longlive", "--memory", "80"])
    plan_ranks.main()
    assert " x cpu over nvlink4" in capsys.readouterr().out


def test_a_slow_device_shows_in_its_figures(monkeypatch):
    """The missing time of a block goes into its reads and writes, so that one rank takes what was measured."""
    case, block = tiny("wan"), iter([1.0, 1.4])
    monkeypatch.setattr("benchmarks.devices.block_seconds", lambda timer, case: next(block))
    machine = calibrated(TIMER, case, 9.0)
    setting = Setting(case.spec, published("nvlink4", 1), 1e12, machine, Numbers(4))
    assert machine.layer == pytest.approx(0.4 / 4 / 5)
    assert price(setting, [full(case.spec)], Exchange()).seconds == pytest.approx(9.0, rel=0.01)


def test_files_that_are_no_device(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_machine(tmp_path / "none.json")
    for text in ("[]", "{", '{"name": "x"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="holds no device"):
            read_machine(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (parallel, ["--ranks", "1"], "ranks 1"),
        (parallel, ["--ranks", "64"], "60 tokens of a latent frame are fewer than 64 ranks"),
        (parallel, ["--cases", "nothing"], "preset 'nothing'"),
        (parallel, ["--cases", "matrix-game-2-universal"], "reads no prompts"),
        (parallel, ["--device", "cuda"], "GPUs are here"),
        (parallel, ["--device", "abacus"], "abacus"),
        (parallel, ["--dtype", "int3"], "int3"),
        (kernels, ["--case", "doom"], "reads no prompts"),
        (kernels, ["--dtype", "int3"], "int3"),
        (plan_ranks, ["--machine", "none.json"], "No such file"),
        (plan, ["--model", "tiny", "--ranks", "12"], "12 ranks in nodes of 8"),
    ],
)  # fmt: skip
def test_errors_in_one_line(command, given, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", *given])
    with pytest.raises(SystemExit, match=f"error: .*{words}"):
        command.main()


def test_published_worlds_by_their_presets():
    assert case_of("self-forcing").spec.stream.tokens == 1560
    assert case_of("magi-4.5b-distill-8step").spec.stream.heads == 8
    with pytest.raises(ValueError, match="expected 2, 1, 1 or more"):
        ParallelConfig(repeats=0).check()


def test_the_plan_of_a_world_says_which_exchange(monkeypatch, capsys):
    def said(*given: str) -> str:
        monkeypatch.setattr("sys.argv", ["plan", "--model", "tiny", "--height", "32", "--width", "48", *given])
        plan.main()
        return capsys.readouterr().out

    text = said("--ranks", "2", "--links", "pcie5", "--machine", "h100")
    assert "2 x H100 SXM over pcie5" in text
    assert "Ulysses 2" in text
    assert "in strips over the ranks it sends" in text
    row = json.loads(said("--ranks", "4", "--json"))
    assert {"Ulysses 4", "one rank"} < {e["exchange"] for e in row["on_ranks"]}
    assert row["disagree"] == []
    assert "exchange" not in said()


def test_one_who_reads_no_further_ends_it_quietly():
    code = "from benchmarks.output import cut_short\nwith cut_short():\n    for i in range(100000): print(i)"
    shell = f"set -o pipefail; {sys.executable} -c '{code}' | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 141)


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / "row.json"
    given = ["--cases", "short", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parallel", *given], capture_output=True, text=True, timeout=300
    )
    assert "picked: " in done.stdout, done.stderr  # how times rank is the machine's affair, and its exit status says so
    row = json.loads(out.read_text())
    assert not [e for e in row["cases"][0]["exchanges"] if not same_bytes(e)]
    assert row["ranks"] == 2
    assert "commit" in row
