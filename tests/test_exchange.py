"""Every exchange makes what one rank makes, sends what its formula says, and keeps what one rank keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from engine import Engine, World
from engine.attention import attend_fused, attend_partial, attend_partial_reference
from engine.kv.view import Group
from engine.parallel import costs
from engine.parallel.heads import Deal
from engine.parallel.layout import Exchange, Layout, Numbers, share
from engine.parallel.merge import Merged
from engine.parallel.mesh import Mesh
from engine.parallel.shapes import Load, loads, rewriting, shape_at, single, sizes_of
from engine.parallel.sharding import shard
from engine.snapshot import read
from tests import magi_sims, published_sims, sims
from tests.exchange_cases import CASES, NAMES, USP, apart, dream_on, exchange_of, footage, shared
from tests.ranks import run

QUICK = ("given pages", "int8", "rewritten, relative", "game, int8", "magi, base")
PRICED = ("given pages", "top-k", "int8", "game, int8", "rewritten", "magi, base", "magi, distilled")
ALONE: dict[str, list[Tensor]] = {}


def check(case: str, exchange: str, ranks: int) -> None:
    if case not in ALONE:
        ALONE[case] = CASES[case].alone()
    first, *others = run(dream_on, case, exchange, ranks=ranks, timeout=120)
    assert apart(first, ALONE[case]) < CASES[case].tolerance
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


@pytest.mark.parametrize("exchange", NAMES)
@pytest.mark.parametrize("case", QUICK)
def test_two_ranks_make_what_one_makes(case, exchange):
    check(case, exchange, 2)


def test_two_ranks_compute_in_bf16():
    check("bf16", "ring", 2)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", NAMES)
@pytest.mark.parametrize("case", [c for c in CASES if c not in QUICK])
def test_two_ranks_make_what_one_makes_of_other_worlds(case, exchange):
    check(case, exchange, 2)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", NAMES + USP)
@pytest.mark.parametrize("case", CASES)
def test_four_ranks_make_what_one_makes(case, exchange):
    check(case, exchange, 4)


def company_on(rank: int, case: str, exchange: str) -> bool:
    """Whether a world's next blocks are the same to the bit alone and beside a younger one."""
    sim, _ = shared(CASES[case].make(), exchange)
    first, other = worlds_of(sim, case)
    [twin] = sim.fork(first)
    made = []
    for worlds in ([first], [twin, other]):
        for _ in range(2):
            step(sim, worlds)
        made.append(worlds[0].latents)
    return torch.equal(*made)


@pytest.mark.parametrize("exchange", ["ulysses", "ring"])
def test_a_world_is_the_same_alone_and_in_company(exchange):
    assert run(company_on, "int8", exchange) == [True, True]


# ---- bytes


def worlds_of(sim: Engine, case: str) -> list[World]:
    """Two worlds of different ages."""
    if sim.spec.staggered:
        worlds = [magi_sims.begin(sim, seed) for seed in range(2)]
        magi_sims.step(sim, worlds)
        magi_sims.step(sim, worlds[:1])
        return worlds
    if sim.spec.published:
        worlds = [published_sims.begin(sim, seed) for seed in range(2)]
        published_sims.roll(sim, worlds[0], 2)
        return worlds
    return [sim.open(footage(sim, age, seed=age), seed=age) for age in (6, 2)]


def step(sim: Engine, worlds: list[World]) -> None:
    if sim.spec.staggered:
        magi_sims.step(sim, worlds)
    elif sim.spec.published:
        published_sims.step(sim, worlds, [published_sims.act(sim, w) for w in worlds])
    else:
        sim.step(worlds, sims.act(*range(len(worlds)), block=sim.spec.block))


def formula(sim: Engine, mesh: Mesh, calls: list[Load]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes and calls of this rank by name, as priced."""
    sizes, numbers = sizes_of(sim.spec), Numbers(4, kv_dtype=sim.pool.kv_dtype)
    sent, count = Counter[str](), Counter[str]()
    for load in calls:
        for t in costs.transfers(Layout.of(mesh.exchange, sizes), sizes, load, numbers):
            times = sizes.layers if t.per_layer else 1
            sent[t.name] += times * t.sent[mesh.rank]
            count[t.name] += t.calls * (times if t.per_layer else 1)
    return dict(sent), dict(count)


def sent_on(rank: int, case: str, exchange: str) -> list[tuple[Any, Any]]:
    """What this rank sent and what the formula says, of a step of two worlds, and of opening a third."""
    kind = CASES[case]
    sim, mesh = shared(kind.make(), exchange)
    worlds, made = worlds_of(sim, case), []
    shapes = [shape_at(sim.spec, w.table.length, sim.policy) for w in worlds]
    groups = [[shapes[i] for i in rows] for rows in sim._alike(worlds)]
    mesh.reset_counts()
    step(sim, worlds)
    made.append((counted(mesh), formula(sim, mesh, [x for g in groups for x in loads(sim.spec, g)])))
    if sim.spec.rollout and sim.spec.rollout.rewrite:
        mesh.reset_counts()
        load = rewritten(sim, worlds[0])
        made.append((counted(mesh), formula(sim, mesh, [load])))
    if not sim.spec.published:
        mesh.reset_counts()
        sim.open(footage(sim, 4, seed=3), seed=3)
        block = sim.spec.block
        shapes = [shape_at(sim.spec, at, sim.policy) for at in range(0, 4, block)]
        made.append((counted(mesh), formula(sim, mesh, [single([s], chooses=True, commits=True) for s in shapes])))
    return made


def rewritten(sim: Engine, world: World) -> Load:
    """Pass a world's latents once more; return what that is priced as."""
    table, kept = world.table, len(world.latents) if world.latents is not None else 0
    load = rewriting(sim.spec, sim.policy, table.length, kept, table.origin)
    with torch.inference_mode():
        sim.runner.rewrite(world, sim.passes[-1])
    return load


def counted(mesh: Mesh) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes and calls of the denoiser."""
    codec = ("frames", "latents of pictures", "rows of neighbours")
    return tuple({k: n for k, n in x.items() if k not in codec} for x in (mesh.sent, mesh.calls))  # type: ignore[return-value]


def check_bytes(case: str, exchange: str, ranks: int) -> None:
    for made in run(sent_on, case, exchange, ranks=ranks, timeout=120):
        for sent, priced in made:
            assert sent == priced
            assert sum(sent[0].values()) > 0


@pytest.mark.parametrize("exchange", NAMES)
@pytest.mark.parametrize("case", ["int8", "game, int8", "rewritten, relative", "magi, base"])
def test_two_ranks_send_what_the_formula_says(case, exchange):
    check_bytes(case, exchange, 2)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", NAMES + USP)
@pytest.mark.parametrize("case", PRICED)
def test_four_ranks_send_what_the_formula_says(case, exchange):
    check_bytes(case, exchange, 4)


# ---- snapshots


def kept_on(rank: int, case: str, exchange: str) -> tuple[bytes, list[Tensor]]:
    """A world's snapshot, and its future."""
    sim, _ = shared(CASES[case].make(), exchange)
    world = worlds_of(sim, case)[0]
    blob = sim.snapshot(world)
    return blob, future(sim, world)


def resumed_on(rank: int, case: str, exchange: str, blob: bytes) -> tuple[bytes, list[Tensor]]:
    """The snapshot of a restored world, and its future."""
    sim, _ = shared(CASES[case].make(), exchange)
    return resumed(sim, blob)


def resumed(sim: Engine, blob: bytes) -> tuple[bytes, list[Tensor]]:
    world = sim.restore(blob)
    return sim.snapshot(world), future(sim, world)


def future(sim: Engine, world: World) -> list[Tensor]:
    made = []
    for _ in range(2):
        step(sim, [world])
        assert world.latents is not None
        made.append(world.latents.clone())
    return made


def same_state(first: bytes, second: bytes) -> bool:
    """Whether two snapshots have the same bits; mean keys, which follow from pages, aside."""
    (_, a), (_, b) = read(first), read(second)
    names = {name for name in a.keys() | b.keys() if name != "pages.means"}
    return names <= a.keys() & b.keys() and all(torch.equal(bits(a[n]), bits(b[n])) for n in names)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def check_snapshots(case: str, exchange: str, ranks: int, others: list[tuple[str, int]]) -> None:
    kind = CASES[case]
    blob, ahead = run(kept_on, case, exchange, ranks=ranks, timeout=120)[0]
    again, same = run(resumed_on, case, exchange, blob, ranks=ranks, timeout=120)[0]
    assert same_state(again, blob)
    assert all(torch.equal(a, b) for a, b in zip(same, ahead, strict=True))
    alone = [resumed(kind.make(), blob)]
    for state, made in alone + [run(resumed_on, case, e, blob, ranks=n, timeout=120)[0] for e, n in others]:
        assert same_state(state, blob)
        assert apart(made, ahead) < kind.tolerance


@pytest.mark.parametrize(
    ("case", "exchange", "other"),
    [("int8", "ring", "ulysses"), ("game, int8", "ulysses", "pass-q"), ("magi, base", "all-gather", "ring")],
)
def test_a_snapshot_of_two_ranks_is_one_ranks_and_the_future_goes_on(case, exchange, other):
    check_snapshots(case, exchange, 2, [(other, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["ulysses", "ring", "all-gather", "usp-pass-q"])
@pytest.mark.parametrize("case", ["given pages", "top-k", "game, int8", "magi, distilled"])
def test_a_snapshot_of_four_ranks_restores_on_one_and_two(case, exchange):
    check_snapshots(case, exchange, 4, [("ulysses", 2), ("ring", 2), ("usp-pass-q", 4)])


# ---- refusals


def refused_on(rank: int, what: str) -> str:
    """The words with which a mesh or a model is refused."""
    if what == "exchange":
        exchange, seed = exchange_of(NAMES[rank % 2], dist.get_world_size()), 0
    else:
        exchange, seed = Exchange(2), rank
    wanted = {"ranks": Exchange(3), "tokens": Exchange(2)}.get(what, exchange)
    changes = {"frame": (16, 8)} if what == "tokens" else {}
    with pytest.raises(ValueError) as caught:
        shard(sims.make_engine(seed=seed, **changes).given, Mesh.of(wanted))
    return str(caught.value)


def test_ranks_that_do_not_run_the_same_are_refused():
    for what, words in {
        "exchange": ("exchange: rank 0 'Ulysses 2', rank 1 'ring pass-KV 2'", "give all of them the same"),
        "weights": ("weights: rank 0 '", "give all of them the same model"),
        "ranks": ("Ulysses 3 needs 3 ranks and the process group has 2", "take another exchange"),
    }.items():
        for said in run(refused_on, what):
            assert all(word in said for word in words)


def test_on_one_rank_a_model_stays_as_it_is():
    model = sims.make_engine().given
    assert shard(model, Mesh.of(Exchange())) is model


# ---- parts


@pytest.mark.parametrize("masked", [False, True])
def test_partial_attention_merges_to_the_whole(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 7, 3, 16), torch.randn(2, 30, 3, 16), torch.randn(2, 30, 3, 16)
    mask = (torch.arange(30) >= torch.tensor([[0], [5]]))[:, None, None] if masked else None
    runs, merged = [slice(0, 11), slice(11, 12), slice(12, 30)], Merged()
    for run_ in runs:
        group = Group(slice(None), k[:, run_], v[:, run_], None if mask is None else mask[..., run_])
        out, lse = attend_partial(q, group)
        for got, want in zip((out, lse), attend_partial_reference(q, group), strict=True):
            torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)
        merged.add(out, lse)
    whole = attend_fused(q, Group(slice(None), k, v, mask))
    torch.testing.assert_close(merged.result(torch.float32), whole, atol=2e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_partial_attention_on_a_gpu_is_the_plain_one(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 12, 128, device="cuda", dtype=dtype) for n in (390, 1170, 1170))
    for mask in (None, torch.arange(1170, device="cuda")[None, None, None] >= 100):
        group = Group(slice(None), k, v, mask)
        (out, lse), (want, want_lse) = attend_partial(q, group), attend_partial_reference(q, group)
        torch.testing.assert_close(out, want, atol=4e-3, rtol=2e-2)
        torch.testing.assert_close(lse, want_lse, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("heads", "kv_heads"), [(12, 12), (6, 2), (5, 5), (24, 8), (3, 1)])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_heads_are_dealt_and_come_back(ranks, heads, kv_heads):
    group = heads // kv_heads
    deal = Deal(ranks, group, kv_heads)
    q, k, v = torch.randn(2, 5, group, kv_heads, 4), *torch.randn(2, 2, 5, kv_heads, 4)
    assert (deal.queries * deal.keys, deal.keys) == share(heads, kv_heads, ranks)
    parts = []
    for rank, packed in enumerate(deal.dealt(q, k, v)):
        queries, keys, values = deal.opened(packed)
        _, kept = deal.runs(rank)
        assert queries.shape == (2, 5 * deal.queries, deal.keys, 4)
        real = slice(0, kept.stop - kept.start)
        assert torch.equal(keys[:, :, real], k[:, :, kept])
        assert torch.equal(values[:, :, real], v[:, :, kept])
        assert not keys[:, :, real.stop :].any()
        parts.append(queries.unflatten(1, (5, deal.queries)))
    assert torch.equal(deal.gathered(parts), q)
