"""Plans: choices against what is known of exchanges, when to plan again, links, sweeps, the commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import many_gpus, plan_ranks
from benchmarks.plan_ranks import RanksConfig, rank_plan, rank_sweep, world_of
from engine.parallel import calibration, costs
from engine.parallel.layout import Exchange, Layout, Numbers
from engine.parallel.links import Link, Links, published, same
from engine.parallel.machines import MACHINES, Machine
from engine.parallel.planner import plan
from engine.parallel.prices import Setting, candidates, load_seconds, options, price
from engine.parallel.shapes import Shape, shape_at
from engine.parallel.simulate import Beside, furthest, least, sweep
from engine.presets import PRESETS
from engine.spec import KVPolicy, WorldSpec
from tests.parallel_cases import BLOCK, PASS_Q, RING, WAN, kind, per_layer

H200 = MACHINES["h200"]


def test_rule_c_long_memories_and_slow_links_pass_queries():
    spec = replace(world_of("krea"), kv=KVPolicy(None))
    one = [shape_at(spec, 300)]
    with pytest.raises(ValueError, match=r"the least needs \d+\.\d GB: take more ranks"):
        plan(spec, one, published("nvlink4", 8), 30e9)
    for ranks, slow in ((8, same(30e-6, 1e9)), (7, same(20e-6, 12e9))):
        links = Links("slow", ranks, slow)
        made = plan(spec, one, links, 141e9)
        whole = [o for o in (made.pick, *made.others) if o.exchange.outer == "all-gather"]
        assert any("GB a rank, and there are 141.0" in o.refused for o in whole)
        if ranks == 7:  # 40 heads over 7 ranks are filled up to 42, and a tenth of a terabyte takes its time
            assert made.exchange == Exchange(7) or made.exchange.outer == "pass-q"
            ring = next(o for o in made.others if o.exchange == kind(RING, 7))
            queries = next(o for o in (made.pick, *made.others) if o.exchange == kind(PASS_Q, 7))
            assert queries.seconds < ring.seconds
    odd = replace(spec.denoiser, heads=5, width=640)
    made = plan(replace(spec, denoiser=odd), one, Links("slow", 7, same(20e-6, 100e9)), 40e9)
    assert made.exchange == kind(PASS_Q, 7)


def test_rule_d_many_calls_and_little_to_send():
    spec, links = world_of("self-forcing"), Links("80 % of NVLink 4", 4, same(0.0, 360e9))
    machine = Machine("790 TF/s", 790e12, 790e12, 1e18, 141e9, layer=0.0, traffic=0.0)
    setting = Setting(spec, links, 141e9, machine, Numbers())
    made = price(setting, [shape_at(spec, 21)], Exchange(4))
    assert made.calls == 2 * 30 * 5 + 5  # the predictions', once a pass
    assert made.waiting * 1e3 == pytest.approx(4.5, abs=0.05)
    assert (made.seconds - made.waiting) * 1e3 == pytest.approx(255.7 / 4, abs=0.1)
    slow = replace(setting, links=Links("slow to begin", 4, same(20e-6, 360e9)))
    assert price(slow, [shape_at(spec, 21)], Exchange(4)).waiting - made.waiting == pytest.approx(305 * 20e-6)


def test_the_choice_follows_heads_links_and_work():
    def pick(name: str, ranks: int, links: str = "nvlink4", machine: str = "h200") -> Exchange:
        return rank_plan(RanksConfig(name, ranks=ranks, links=links, machine=machine)).exchange

    assert pick("self-forcing", 4) == Exchange(4)
    assert pick("self-forcing", 6, "pcie4", "4090") == Exchange(6)
    assert pick("krea", 8) == Exchange(8)
    assert pick("doom", 8) == Exchange()  # launches cost more than there is to share
    twelve = rank_plan(RanksConfig("self-forcing", ranks=8))
    assert twelve.exchange.ulysses == 4  # 12 heads over 8 ranks: a hybrid is cheaper than four heads of zeros
    assert next(o for o in twelve.others if o.exchange == Exchange(8)).padded == pytest.approx(16 / 12)
    across = rank_plan(RanksConfig("magi-4.5b-distill", ranks=32)).exchange
    assert across.ulysses == 8  # heads within a node, the rest between nodes
    assert across.groups == 4


def test_a_tie_goes_to_what_sends_least():
    spec = world_of("krea")
    setting = Setting(spec, published("nvlink4", 4), 141e9, H200, Numbers())
    pick, *others = options(setting, [shape_at(spec, 60)])
    near = [o for o in others if not o.refused and o.seconds <= 1.02 * min(o.seconds, pick.seconds)]
    assert all(max(pick.sent) <= max(o.sent) for o in near)
    assert pick.seconds <= 1.02 * min(o.seconds for o in others)
    assert others == sorted(others, key=lambda o: o.order)


def test_a_plan_says_when_to_plan_again():
    spec = replace(world_of("self-forcing"), kv=KVPolicy(None))
    links = published("nvlink4", 16)
    made = plan(spec, [Shape(3, 3)], links, 141e9)
    assert made.crossover is not None
    turn = made.crossover.history
    before, after = (plan(spec, [Shape(3, h)], links, 141e9) for h in (turn - 1, turn))
    assert before.exchange == made.exchange
    assert after.exchange == made.crossover.exchange != made.exchange
    assert [made.outgrown([Shape(3, h)]) for h in (3, turn - 1, turn)] == [False, False, True]
    assert made.outgrown([Shape(3, 3)] * 2)
    assert made.outgrown([Shape(1, 3)])
    full = plan(spec, [Shape(3, 3)], links, before.pick.memory)
    assert full.crossover is not None
    windowed = world_of("self-forcing")
    assert plan(windowed, [shape_at(windowed, 90)], published("nvlink4", 4), 141e9).crossover is None


def test_a_history_that_ends_in_full_memory():
    spec = replace(world_of("self-forcing"), kv=KVPolicy(None))
    made = plan(spec, [Shape(3, 3)], published("nvlink4", 2), 20e9)
    assert made.crossover is not None
    while made.crossover.exchange is not None:
        made = plan(spec, [Shape(3, made.crossover.history)], made.links, 20e9)
        assert made.crossover is not None
    last = made.crossover.history
    assert plan(spec, [Shape(3, last - 1)], made.links, 20e9).pick.memory <= 20e9
    with pytest.raises(ValueError, match="no exchange over 2 ranks fits into 20"):
        plan(spec, [Shape(3, last)], made.links, 20e9)
    assert "nothing fits in memory" in str(made)


def test_hops_hide_behind_attention_and_the_rest_is_waited_for():
    spec, machine = world_of("self-forcing"), replace(H200, hidden=1.0, layer=0.0)
    fast, slow = Links("fast", 4, same(0.0, 1e15)), Links("slow", 4, same(0.0, 10e9))
    layout, once = Layout.of(kind(RING, 4), WAN), 4680 * 3 / 4 * 64 * 2
    _, waited = load_seconds(Setting(spec, fast, 1e12, machine, Numbers()), layout, BLOCK)
    assert waited == pytest.approx(once / 1e15)
    part = costs.attention_flops(layout, WAN, BLOCK) / machine.attention / 4
    sent = max(per_layer(kind(RING, 4), WAN, BLOCK))
    _, waited = load_seconds(Setting(spec, slow, 1e12, machine, Numbers()), layout, BLOCK)
    assert waited == pytest.approx(30 * (sent / 10e9 - 3 * part) + once / 10e9)
    assert machine.exposed(5.0, 3.0) == 2.0
    assert replace(machine, hidden=0.8).exposed(5.0, 3.0) == pytest.approx(2.6)


def test_seconds_of_links():
    two = published("nvlink4", 16, "ib-ndr")
    assert two.seconds("hop", 360e9, 1, 8, 8) == pytest.approx(1 + 10e-6)
    assert two.seconds("hop", 40e9, 4, 2, 1) == pytest.approx(1 + 4 * 20e-6)
    assert two.seconds("all-to-all", 40e9 * 15 / 8, 1, 16, 8) == pytest.approx(1 + 30e-6 + 14 * 1e-6)
    shared = two.seconds("all-gather", 40e9 * 15, 1, 16, 8)  # eight cards bring what comes to a node
    assert shared == pytest.approx(max(1, 40e9 * 15 / 360e9) + 44e-6)
    assert two.seconds("all-to-all", 1e9, 1, 1, 1) == 0.0
    assert Links.from_dict(two.to_dict()) == two
    assert two.over(8).ranks == 8
    for bad in (lambda: two.over(12), lambda: published("nvlink9", 4), lambda: published("nvlink4", 16, None),
                lambda: Link(0.0, 0.0), lambda: Links.from_dict({"name": "x"})):  # fmt: skip
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(ValueError, match="above 0"):
        Machine("none", 0.0, 1.0, 1.0, 1.0)


def test_a_plan_reads_the_same_twice():
    first, second = (str(rank_plan(RanksConfig("self-forcing", kv_dtype="int8"))) for _ in range(2))
    assert first == second
    assert "modelled, not measured" in first.splitlines()[0]
    assert "filled up with zeros" in first
    assert "chosen" in first.splitlines()[3]
    assert len(first.splitlines()) == 2 + 1 + len(candidates(8)) + 2


def test_quantised_pages_are_cheaper_to_pass_and_to_hold():
    plain, codes = (rank_plan(RanksConfig("self-forcing", kv_dtype=x)) for x in (None, "int8"))
    ring, ring_of_codes = (next(o for o in (p.pick, *p.others) if o.exchange == kind(RING, 8)) for p in (plain, codes))
    assert max(ring_of_codes.sent) < 0.6 * max(ring.sent)
    assert codes.pick.memory < plain.pick.memory


def test_sweeps():
    points = rank_sweep(RanksConfig("magi-24b-distill"))
    assert [p.fits for p in points][:2] == [False, False]  # 48 GB of weights, and four chunks in flight
    assert all(p.pick.exchange.ranks == p.ranks for p in points)
    assert all(0 < p.efficiency <= 1.0001 for p in points if p.fits)
    some = least(points, 2.0)
    assert some is not None
    assert some.pick.seconds <= 2.0 < points[points.index(some) - 1].pick.seconds
    assert least(points, 1e-9) is None
    edge = furthest(points, 0.9)
    assert edge is not None
    assert all(p.efficiency < 0.9 for p in points if p.ranks > edge.ranks)
    tiny = sweep(
        world_of("doom"), [Shape(1, 12)], lambda n: published("nvlink4", n), H200, beside=Beside(5, 9), ranks=(1, 2, 64)
    )
    assert tiny[0].efficiency == pytest.approx(1)
    assert tiny[1].speedup < 1
    assert not tiny[2].fits
    assert tiny[2].speedup == 0
    assert [Beside(5, 9).of(n) for n in (1, 2)] == [14, 10]


def test_the_command(monkeypatch, capsys):
    def said(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["plan_ranks", *options])
        plan_ranks.main()
        return capsys.readouterr().out

    assert "Ulysses 4" in said("--preset", "longlive", "--ranks", "4", "--window", "9", "--sink", "3")
    assert "from" in said("--preset", "self-forcing", "--window", "0", "--length", "3", "--ranks", "16")
    assert len(said("--preset", "doom", "--sweep").splitlines()) == 3 + 15
    wrong = (["--preset", "nothing"], ["--ranks", "12"], ["--machine", "abacus"], ["--memory", "1"],
             ["--preset", "magi-4.5b-base", "--window", "3"], ["--window", "2"], ["--worlds", "0"],
             ["--dtype", "int4"], ["--kv-dtype", "int4"])  # fmt: skip
    for given in wrong:
        with pytest.raises(SystemExit, match="error: "):
            said(*given)


def calibrated(rank: int, port: int, folder: str) -> None:
    """What one of two processes does: measure, keep, and read."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        mesh, path = init_device_mesh("cpu", (2,)), f"{folder}/{rank}/links.json"
        links = calibration.links_of(mesh, path, repeats=2)
        assert links.measured
        assert links.ranks == 2
        assert 1e6 < links.inside.hop.bandwidth < 1e13
        assert calibration.links_of(mesh, path, repeats=2) == links  # which rank 1 has no file of
        figures = torch.tensor([links.inside.hop.bandwidth, links.inside.all_to_all.latency], dtype=torch.float64)
        both = [torch.zeros(2, dtype=torch.float64) for _ in range(2)]
        dist.all_gather(both, figures)
        assert torch.equal(*both)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_calibration_on_two_processes(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(calibrated, (port, str(tmp_path)), nprocs=2)
    (only,) = calibration.read(tmp_path / "0" / "links.json").values()
    assert Links.from_dict(only).measured
    assert not (tmp_path / "1").exists()
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no links"):
        calibration.read(tmp_path / "bad.json")


def test_a_line_through_two_times():
    link = calibration.fitted(1.1e-3, 2.1e-3, 1e6, 11e6)
    assert link.bandwidth == pytest.approx(1e10)
    assert link.latency == pytest.approx(1e-3)
    assert calibration.fitted(2e-3, 1e-3, 1e3, 1e6).bandwidth > 0


def test_every_preset_can_be_planned():
    for name in PRESETS:
        spec = world_of(name)
        assert isinstance(spec, WorldSpec)
        length = 40 if spec.kv.span is None else 400
        made = plan(spec, [shape_at(spec, length)], published("nvlink4", 8), 141e9)
        assert made.pick.seconds > 0


@pytest.mark.slow
def test_the_plots(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(many_gpus, "MODELS", {name: many_gpus.MODELS[name] for name in ("doom", "krea")})
    monkeypatch.setattr("sys.argv", ["many_gpus", "--out", str(tmp_path), "--table", str(tmp_path / "table.md")])
    many_gpus.main()
    assert {p.stat().st_size > 10_000 for p in tmp_path.glob("many-gpus-*.png")} == {True}
    assert len(list(tmp_path.glob("many-gpus-*.png"))) == 3
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "does not fit" in text.splitlines()[3]  # 28 GB of weights on cards of 24
