"""What exchanges move, compute and hold: against moves written out, byte by byte, models, pools and real calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.formulas import parameters
from benchmarks.models import MODELS
from benchmarks.plan_ranks import LARGE, world_of
from engine.kv.flight import AloneLayer, FlightLayer
from engine.kv.paged import PagedLayer
from engine.kv.pool import Pool
from engine.models import magi, wan
from engine.parallel import costs
from engine.parallel.layout import Exchange, Layout, Numbers, share, split
from engine.parallel.links import published
from engine.parallel.machines import MACHINES
from engine.parallel.prices import Setting, candidates, memory_bytes
from engine.parallel.shapes import Load, Shape, grown, loads, shape_at, sizes_of
from engine.spec import KVPolicy
from tests import magi_sims, published_sims
from tests.parallel_cases import (
    BLOCK,
    GATHER,
    LATE,
    MAGI,
    PASS_Q,
    RING,
    SELECTED,
    ULYSSES,
    WAN,
    WIDE,
    Moves,
    kind,
    per_layer,
    recorded,
)  # fmt: skip

H200 = MACHINES["h200"]


@pytest.mark.parametrize(
    ("sizes", "load", "calls", "ranks", "gigabytes", "milliseconds"),
    [
        (WAN, BLOCK, 150, 2, (2.2, 2.2, 2.2, 15.1), (6.0, 6.0, 6.0, 42)),
        (WAN, BLOCK, 150, 4, (1.6, 3.2, 3.3, 22.6), (4.5, 9.0, 9.1, 63)),
        (WAN, BLOCK, 150, 8, (None, 3.8, 3.8, 26.4), (None, 10.5, 10.6, 73)),
        (WIDE, BLOCK, 200, 4, (7.2, 14.4, 14.5, 101), (20, 40, 40, 280)),
        (WIDE, BLOCK, 200, 8, (4.2, 16.8, 16.9, 117), (12, 47, 47, 326)),
        (MAGI, LATE, 272, 4, (10.2, 10.2, 30.7, 50.8), (28, 28, 85, 141)),
        (MAGI, LATE, 272, 2, (13.5, 6.8, 20.5, 33.8), (38, 19, 57, 94)),
    ],
)
def test_bytes_of_a_block_are_the_known_ones(sizes, load, calls, ranks, gigabytes, milliseconds):
    for outer, known, known_ms in zip((ULYSSES, GATHER, PASS_Q, RING), gigabytes, milliseconds, strict=True):
        if known is None:
            continue
        total = calls * max(per_layer(kind(outer, ranks), sizes, load))
        digits = 1 if known < 100 else 0
        # A half is rounded either way in a table: 6.75 is written as 6.8 and 13.55 as 13.5.
        assert total / 1e9 == pytest.approx(known, abs=0.5 * 10**-digits + 0.011)
        assert total / 360e6 == pytest.approx(known_ms, abs=0.56)


def test_formulas_in_closed_form_where_all_divides():
    d, tokens, seen, b = 1536, 4680, 32760, 2
    for p in (2, 4):
        f = (p - 1, p)
        assert per_layer(Exchange(p), WAN, BLOCK) == [f[0] * tokens // p * 4 * d * b // f[1]] * p
        assert per_layer(kind(GATHER, p), WAN, BLOCK) == [f[0] * tokens * 2 * d * b // f[1]] * p
        assert per_layer(kind(RING, p), WAN, BLOCK) == [f[0] * seen * 2 * d * b // f[1]] * p
        for b_o in (2, 4):
            sent = per_layer(kind(PASS_Q, p), WAN, BLOCK, Numbers(partial=b_o))
            assert sent == [f[0] * tokens * (d * b + d * b_o + 4 * 12) // f[1]] * p


@pytest.mark.parametrize("numbers", [Numbers(), Numbers(4), Numbers(2, 4), Numbers(kv_dtype="int8")])
@pytest.mark.parametrize("heads", [(12, 12), (6, 2), (5, 5)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 6, 8, 12])
def test_bytes_equal_moves_written_out(ranks, heads, numbers):
    sizes = replace(WAN, tokens=77, heads=heads[0], kv_heads=heads[1])  # which no number of ranks divides but 7 and 11
    load = Load(3, 7, 3 * 10)
    for exchange in candidates(ranks):
        assert per_layer(exchange, sizes, load, numbers) == Moves(exchange, sizes, load, numbers).go()


def test_runs_and_heads():
    assert split(10, 4) == [len(x) for x in torch.arange(10).tensor_split(4)] == [3, 3, 2, 2]
    assert share(12, 12, 8) == (2, 2)  # 16 of 12
    assert share(40, 40, 8) == (5, 5)
    assert share(24, 8, 4) == (6, 2)
    assert share(48, 8, 16) == (3, 1)  # two ranks a kv head, half its queries each
    assert share(24, 8, 16) == (2, 1)  # of three queries one gets two, and so do all
    assert share(4, 4, 8) == (1, 1)
    with pytest.raises(ValueError, match="fewer than 8 ranks"):
        Layout.of(Exchange(8), replace(WAN, tokens=4))
    with pytest.raises(ValueError, match="an outer exchange"):
        Exchange(2, "", 2)
    with pytest.raises(ValueError, match="kv_dtype"):
        Numbers(kv_dtype="int4")


def test_selection_and_quantised_commits_need_a_little_more():
    def names(exchange: Exchange, numbers: Numbers) -> dict[str, int]:
        made = costs.transfers(Layout.of(exchange, WAN), WAN, SELECTED, numbers)
        return {t.name: t.sent[0] for t in made}

    codes = Numbers(kv_dtype="int8")
    trade, ring = names(Exchange(4), codes), names(kind(RING, 4), codes)
    gather, queries = names(kind(GATHER, 4), codes), names(kind(PASS_Q, 4), codes)
    assert trade["page scores"] == ring["page scores"] == queries["page scores"] == 3 * 9 * 4
    assert gather["mean queries"] == ring["mean queries"] == 3 * 2 * 1536 * 4
    assert "page scores" not in gather
    assert queries["mean queries"] == ring["mean queries"]
    assert "mean queries" not in trade
    assert ring["largest magnitudes"] == queries["largest magnitudes"] == 3 * 2 * 12 * 129 * 4
    assert "largest magnitudes" not in trade | gather
    assert "largest magnitudes" not in names(kind(RING, 4), Numbers())
    assert ring["prediction"] == 3 * 2 * 390 * 64 * 2
    assert names(Exchange(), codes) == {}


def test_rule_a_gathering_wins_where_keys_are_few():
    for heads in ((12, 12), (24, 8), (24, 4), (24, 24)):
        for p in (2, 3, 4):
            sizes = replace(WAN, heads=heads[0], kv_heads=heads[1])
            if sizes.kv_heads % p:
                continue
            gather, trade = (max(per_layer(kind(x, p), sizes, BLOCK)) for x in (GATHER, ULYSSES))
            ratio = p * sizes.narrow / (sizes.wide + sizes.narrow)
            assert gather / trade == pytest.approx(ratio)
            if abs(ratio - 1) > 1e-9:
                assert (gather < trade) == (sizes.narrow / sizes.wide < 1 / (p - 1))


def test_rule_b_queries_are_fewer_than_keys_once_there_is_a_cache():
    for sizes in (WAN, MAGI):
        for new in (1, 3, 6):
            for history in (0, 1, 2, 3, 6, 12, 18, 60):
                load = Load(new, history, new * (new + history))
                queries, keys = (max(per_layer(kind(x, 5), sizes, load)) for x in (PASS_Q, RING))
                ours, theirs = new * sizes.wide, (new + history) * sizes.narrow
                if abs(ours - theirs) > 0.02 * theirs:  # log-sum-exps are another 1.6 %
                    assert (queries < keys) == (ours < theirs)


def test_rule_e_log_sum_exps_are_float32():
    narrow, wide = (max(per_layer(kind(PASS_Q, 4), replace(WAN, heads=h, head_width=d), BLOCK)) for h, d in
                    ((12, 128), (24, 64)))  # fmt: skip
    assert wide - narrow == 3 * 3 * 390 * 4 * 12  # 12 more heads, a number of 4 bytes each
    layout = Layout.of(kind(PASS_Q, 4), WAN)
    assert costs.merge_bytes(layout, WAN, BLOCK) == 3 * 3 * 390 * 12 * 129 * 4
    assert costs.merge_bytes(Layout.of(Exchange(4), WAN), WAN, BLOCK) == 0


def test_operations_equal_the_models_own():
    spec = world_of("self-forcing")
    assert (sizes_of(spec), sizes_of(world_of("krea"))) == (WAN, WIDE)
    alone, patches = Layout.of(Exchange(), WAN), 2 * 4680 * 1536 * 128 + 2 * 3 * (256 * 1536 + 7 * 1536**2)
    made = [f(alone, WAN, BLOCK) for f in (costs.linear_flops, costs.attention_flops, costs.context_flops)]
    assert 30 * sum(made) + patches == wan.flops(spec.denoiser, 1560, 3, 18)
    assert [round(30 * x / 1e12, 2) for x in made] == [11.7, 28.26, 0.44]
    assert 150 * sum(made) / 1e12 == pytest.approx(202.0, abs=0.1)
    late = world_of("magi-4.5b-distill")
    assert sizes_of(late) == MAGI
    alone = Layout.of(Exchange(), MAGI)
    made = [f(alone, MAGI, LATE) for f in (costs.linear_flops, costs.attention_flops, costs.context_flops)]
    whole = magi.flops(late.denoiser, 2025, 6, 30, 800)
    assert 34 * sum(made) + 2 * 12150 * 3072 * 128 == whole
    assert [round(34 * x / 1e12, 1) for x in made] == [98.8, 308.4, 4.1]
    for exchange in (Exchange(4), kind(RING, 4), kind(PASS_Q, 4), Exchange(2, "all-gather", 2)):
        layout = Layout.of(exchange, WAN)
        assert costs.attention_flops(layout, WAN, BLOCK) * 4 == costs.attention_flops(
            Layout.of(Exchange(), WAN), WAN, BLOCK
        )


def test_weights_are_the_published_ones():
    known = {"self-forcing": 1_418_996_800, "krea": 14_288_491_584, "magi-4.5b-distill": 4.460e9}
    for name, count in known.items():
        assert sizes_of(world_of(name)).weights == pytest.approx(count, rel=2e-3)
    assert sizes_of(world_of("magi-24b-distill")).weights == pytest.approx(23.90e9, rel=2e-3)
    assert LARGE.kv_heads == 8
    game = parameters(MODELS["matrix-game-2-universal"])
    assert sizes_of(world_of("matrix-game-2-universal")).weights == pytest.approx(game, rel=2e-3)


def test_a_rank_alone_holds_what_the_pool_does():
    for name in ("self-forcing", "longlive", "matrix-game-2-universal"):
        spec = world_of(name)
        for kv_dtype in (None, "int8"):
            numbers = Numbers(kv_dtype=kv_dtype)
            setting = Setting(spec, published("nvlink4", 1), 1e12, H200, numbers, weights=0)
            layout, shape = Layout.of(Exchange(), sizes_of(spec)), shape_at(spec, 1000)
            pages = shape.history + shape.new
            pool = Pool(spec.streams, pages, torch.bfloat16, torch.device("meta"), 0, kv_dtype)
            assert memory_bytes(setting, layout, [shape], []) == pool.device_bytes


def test_ranks_hold_their_share():
    spec = world_of("self-forcing")
    shape, numbers = shape_at(spec, 60), Numbers()
    page, whole = 2 * 30 * 1536 * 2, costs.cache_bytes(Layout.of(Exchange(), WAN), WAN, 21, numbers)
    assert whole == 21 * 1560 * page
    shares = {Exchange(4): 1560 / 4, kind(RING, 4): 390, kind(GATHER, 4): 1560, Exchange(2, "all-gather", 2): 780}
    for exchange, tokens in shares.items():
        assert costs.cache_bytes(Layout.of(exchange, WAN), WAN, 21, numbers) == 21 * tokens * page
    setting = Setting(spec, published("nvlink4", 4), 1e12, H200, numbers, reserved=7)
    total = memory_bytes(setting, Layout.of(Exchange(4), WAN), [shape], [BLOCK])
    assert total > 2 * WAN.weights + whole / 4 + 7
    assert total == memory_bytes(replace(setting, reserved=0), Layout.of(Exchange(4), WAN), [shape], [BLOCK]) + 7
    activations = costs.activation_bytes(Layout.of(Exchange(), WAN), WAN, BLOCK, numbers)
    assert activations == pytest.approx(264_296_448, rel=0.05)  # as benchmarks/plan.py counts them on the meta device
    assert costs.activation_bytes(Layout.of(Exchange(), WIDE), WIDE, BLOCK, numbers) == pytest.approx(868_408_320, 0.05)


def test_what_a_policy_shows_is_what_a_block_is():
    spec = world_of("longlive")
    assert [shape_at(spec, n).history for n in (0, 3, 9, 12, 600)] == [0, 3, 9, 9, 9]
    chosen = KVPolicy(6, sink=1, top_k=2, memory=8)
    assert shape_at(spec, 3, chosen) == Shape(3, 3, 0)
    assert shape_at(spec, 8, chosen) == Shape(3, 8, 1)
    assert shape_at(spec, 100, chosen) == Shape(3, 6 + 1 + 2, 8)
    assert shape_at(world_of("self-forcing-i2v"), 0) == Shape(1, 0)
    assert shape_at(world_of("magi-4.5b-distill"), 600) == Shape(6, 6)
    assert grown(Shape(3, 5), 100, KVPolicy(9)) == Shape(3, 9)
    assert grown(Shape(3, 5), 100, KVPolicy(None)) == Shape(3, 105)
    with pytest.raises(ValueError, match="history >= 0"):
        Shape(3, -1)
    with pytest.raises(ValueError, match="no shapes"):
        loads(spec, [])


def test_ragged_worlds_add_up():
    spec = world_of("self-forcing")
    made = loads(spec, [Shape(3, 0), Shape(1, 7), Shape(3, 18, 4)])
    assert len(made) == 5
    assert made[0] == Load(7, 25, 9 + 8 + 63, 3, 4, 0)
    assert made[-1] == Load(7, 25, 80, 3, 0, 7)
    assert made[1] == made[2] == made[3] == Load(7, 25, 80, 3)


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("window", [4, 1])
def test_staggered_calls_are_those_that_run(distill, window, monkeypatch):
    sim = magi_sims.make_sim(distill, window=window, max_worlds=2)
    worlds = [magi_sims.begin(sim, seed) for seed in range(2)]
    for _ in range(5):
        magi_sims.step(sim, worlds)
    spec, shapes = sim.spec, [shape_at(sim.spec, w.table.length, sim.policy) for w in worlds]
    assert {s.history for s in shapes} == {len(w.table.pages) for w in worlds}
    made: list[tuple[int, int]] = []
    for view in (FlightLayer, AloneLayer):
        monkeypatch.setattr(view, "extend", recorded(view, made))
    magi_sims.step(sim, worlds)
    tokens, shared = spec.stream.tokens, spec.denoiser.heads // spec.denoiser.kv_heads
    wanted = loads(spec, shapes)
    assert made == [(x.new * tokens * shared, x.pairs * tokens**2 * shared) for x in wanted for _ in range(2)]
    assert sum(x.commits for x in wanted) == spec.block * 2


def test_single_calls_are_those_that_run(monkeypatch):
    sim = published_sims.make_sim(policy=KVPolicy(4, sink=1))
    world = published_sims.begin(sim)
    made: list[tuple[int, int]] = []
    for _ in range(4):
        published_sims.step(sim, [world], [published_sims.act(sim, world)])
    shape = shape_at(sim.spec, world.table.length, sim.policy)
    monkeypatch.setattr(PagedLayer, "extend", recorded(PagedLayer, made))
    published_sims.step(sim, [world], [published_sims.act(sim, world)])
    tokens, layers = sim.spec.stream.tokens, sim.spec.denoiser.layers
    wanted = [(x.new * tokens, x.pairs * tokens**2) for x in loads(sim.spec, [shape])]
    assert made == [pair for pair in wanted for _ in range(layers)]
