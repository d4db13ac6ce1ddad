"""The engine: cached = recomputed, determinism, paging, admission, bad input."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import Condition, Engine, KVPolicy, PoolFull, Start
from engine.attention import attend, attend_dense, attend_fused, attend_reference
from engine.kv.ahead import Ahead
from engine.kv.paged import PagedView
from engine.kv.pool import HOST
from engine.kv.view import CausalView, Group
from engine.loading import assemble
from engine.paged_attention import attend_reference as attend_reference_paged
from engine.runner import Runner
from engine.schedule import commit
from tests.sims import Uncached, act, check_pages, footage, identical, make_engine, roll
from tests.worlds import TINY, make_modules

POLICIES = [
    (KVPolicy(4), 1),
    (KVPolicy(1), 1),
    (KVPolicy(3, sink=2), 1),
    (KVPolicy(None), 1),
    (KVPolicy(2, pages=(0, 3, 9)), 1),
    (KVPolicy(2, sink=1, pages=(4,)), 2),
    (KVPolicy(4), 2),
    (KVPolicy(4, sink=1), 2),
]


@pytest.mark.parametrize(("policy", "block"), POLICIES)
@pytest.mark.parametrize("age", [2, 6, 20])
def test_cached_history_equals_recomputed(policy, block, age):
    """After `age` real frames, the pool holds what one pass over all of them computes, and features agree."""
    sim = make_engine(kv=policy, block=block, context_noise=0.0)
    seen, spec = footage(age), sim.spec
    with torch.inference_mode():
        world = sim.open(seen, seed=0)
        latents, _ = sim.model.codec.encode(torch.from_numpy(seen.frames)[None])
        before = np.concatenate([seen.variables[:1], seen.variables[:-1]])
        condition = Condition(
            torch.from_numpy(seen.actions)[None], torch.from_numpy(spec.encode_variables(before))[None]
        )
        view = CausalView(spec.kv, spec.stream.tokens, block=block)
        levels = torch.zeros(1, age)
        _, features = sim.model.denoiser(latents, levels, torch.arange(age)[None], condition, view)
    torch.testing.assert_close(world.head_state, sim.model.heads.summarise(features[:, -1])[0], atol=2e-5, rtol=1e-4)
    for layer in range(spec.denoiser.layers):
        keys = view.recorded["self", layer][0][0].unflatten(0, (age, -1))
        for position, page in zip(world.table.positions, world.table.pages, strict=True):
            torch.testing.assert_close(sim.pool.range(layer, page, 1)[0][0], keys[position], atol=2e-5, rtol=1e-4)


class Chosen:
    """A view without a cache in which frame f of a layer sees the frames that were chosen for it there, and itself."""

    def __init__(self, chosen: dict[tuple[int, int], list[int]], tokens: int):
        self.chosen, self.tokens = chosen, tokens
        self.keys: dict[int, torch.Tensor] = {}

    def layer(self, index: int):
        return SimpleNamespace(extend=lambda q, k, v, turn=None: self.groups(index, k, v))

    def groups(self, index: int, k: torch.Tensor, v: torch.Tensor) -> list[Group]:
        self.keys[index] = k
        k, v = (x.unflatten(1, (-1, self.tokens)) for x in (k, v))
        seen = [[*self.chosen[index, f], f] for f in range(k.shape[1])]
        rows = [slice(f * self.tokens, (f + 1) * self.tokens) for f in range(k.shape[1])]
        return [Group(row, k[:, s].flatten(1, 2), v[:, s].flatten(1, 2)) for row, s in zip(rows, seen, strict=True)]


def test_pages_chosen_by_relevance_equal_the_same_choice_recomputed(monkeypatch):
    """Every layer's choice for every frame is written down; one pass without a cache under it gives the same keys."""
    chosen: dict[tuple[int, int], list[int]] = {}
    ordered = PagedView.mask

    def noted(view, positions, stream):
        chosen[len(view.buffers), view.in_flight_position] = [p for p in positions[0].tolist() if p >= 0]
        return ordered(view, positions, stream)

    look = Runner._single

    def looked(runner, worlds, passes, frames):
        view = look(runner, worlds, passes, frames)
        view.in_flight_position = worlds[0].table.length
        return view

    monkeypatch.setattr(PagedView, "mask", noted)
    monkeypatch.setattr(Runner, "_single", looked)
    sim = make_engine(kv=KVPolicy(2, sink=1, top_k=2, memory=10), context_noise=0.0)
    seen, spec = footage(16), sim.spec
    world = sim.open(seen, seed=0)
    assert any(chosen[0, f] != chosen[1, f] for f in range(16))  # layers choose for themselves
    assert any(len(set(chosen[0, f]) - {0, f - 2, f - 1}) == 2 for f in range(16))
    view = Chosen(chosen, spec.stream.tokens)
    with torch.inference_mode():
        latents, _ = sim.model.codec.encode(torch.from_numpy(seen.frames)[None])
        before = np.concatenate([seen.variables[:1], seen.variables[:-1]])
        condition = Condition(
            torch.from_numpy(seen.actions)[None], torch.from_numpy(spec.encode_variables(before))[None]
        )
        sim.model.denoiser(latents, torch.zeros(1, 16), torch.arange(16)[None], condition, view)
    for layer, keys in view.keys.items():
        keys = keys[0].unflatten(0, (16, -1))
        for position, page in zip(world.table.positions, world.table.pages, strict=True):
            torch.testing.assert_close(sim.pool.range(layer, page, 1)[0][0], keys[position], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("window", "sink"), [(4, 0), (2, 1), (None, 0)])
def test_a_dreamed_block_equals_the_one_dreamed_without_a_cache(window, sink):
    """The passes of a block, run over the recomputed history of the very frames the world committed."""
    sim = make_engine(kv=KVPolicy(window, sink))
    world = sim.open(footage(3), seed=5)
    reference = Uncached(sim, footage(3), seed=5)
    for action in (1, 2, 0, 1, 1, 2, 0):
        [condition] = act(action)
        [block] = sim.step([world], [condition])
        latents = reference.step(condition)
        torch.testing.assert_close(world.latents, latents, atol=1e-4, rtol=1e-3)
        reference.variables.append(block.variables)


def test_unbounded_rollout_holds_its_memory_and_its_order():
    sim = make_engine()
    world = sim.open(footage(1), seed=0)
    data = [sim.pool.range(layer, 0, 1)[0].data_ptr() for layer in range(2)]
    for block in roll(sim, world, 300):
        assert np.isfinite(block.reward)
    assert world.table.length == 301
    assert world.table.positions == [297, 298, 299, 300]
    assert sim.pool.num_held == 4
    assert [sim.pool.range(layer, 0, 1)[0].data_ptr() for layer in range(2)] == data


def test_the_slice_and_the_gather_give_the_same_bits():
    """A window that wraps around the pool's end is gathered; one that does not is sliced: same frames."""
    roomy, tight = make_engine(), make_engine()
    tight.runner.pool = type(roomy.pool)(roomy.spec.stream, tight.need, torch.float32, torch.device("cpu"))
    worlds = roomy.open(footage(2), seed=3), tight.open(footage(2), seed=3)
    for a, b in zip(roll(roomy, worlds[0], 30), roll(tight, worlds[1], 30), strict=True):
        assert np.array_equal(a.frames, b.frames)
        assert a.reward == b.reward


def test_same_seed_and_actions_give_the_same_future_and_other_seeds_do_not():
    sim = make_engine(max_worlds=3)
    worlds = [sim.open(footage(1), seed=s) for s in (7, 7, 8)]
    first, second, other = (roll(sim, w, 8) for w in worlds)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.frames, b.frames)
        assert (a.reward, a.end_probability, a.terminated) == (b.reward, b.end_probability, b.terminated)
        assert np.array_equal(a.variables, b.variables)
    assert not np.array_equal(first[0].frames, other[0].frames)


def test_variables_move_as_expected_in_the_mean():
    """Over many draws of one block's noise, variables are on average what each block expected of them."""
    sim = make_engine(max_worlds=2)
    world = sim.open(footage(1), seed=7)
    drawn, expected = [], []
    for seed in range(300):
        [fork] = sim.fork(world, 1, [seed])
        [block] = sim.step([fork], act(1))
        drawn.append(block.variables[0])
        expected.append(block.expected[0])
        sim.close(fork)
    low, high = TINY.variables[0].low, TINY.variables[0].high
    assert all(low <= x <= high for x in expected)
    spread = np.std(drawn)
    assert spread > 0
    assert np.std(expected) < spread
    assert np.mean(drawn) == pytest.approx(np.mean(expected), abs=4 * spread / 300**0.5)


def test_actions_and_variables_steer_the_dream():
    sim = make_engine(max_worlds=3)
    left, right, tired = (sim.open(footage(2), seed=1) for _ in range(3))
    tired.variables[:] = 0
    frames = [sim.step([w], act(a))[0].frames for w, a in ((left, 1), (right, 2), (tired, 1))]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_worlds_of_different_ages_step_together_as_alone():
    sim = make_engine(max_worlds=6)
    ages = (1, 3, 9)
    alone = [sim.open(footage(k), seed=k) for k in ages]
    together = [sim.open(footage(k), seed=k) for k in ages]
    for action in (1, 2, 0, 1, 2):
        single = [sim.step([w], act(action))[0] for w in alone]
        batch = sim.step(together, act(action, action, action))
        for a, b in zip(single, batch, strict=True):
            assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
            assert a.end_probability == pytest.approx(b.end_probability, abs=1e-4)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=1e-3)


def test_observing_bit_by_bit_equals_opening_at_once():
    sim = make_engine(max_worlds=2)
    seen = footage(7)
    whole = sim.open(seen, seed=4)
    parts = sim.open(Start(seen.frames[:3], seen.actions[:3], seen.variables[:3]), seed=4)
    for k in range(3, 7):
        sim.observe(parts, Start(seen.frames[k : k + 1], seen.actions[k : k + 1], seen.variables[k : k + 1]))
    assert np.array_equal(sim.step([whole], act(1))[0].frames, sim.step([parts], act(1))[0].frames)


def test_a_world_may_begin_from_latents():
    """Those that its first frames encode to: the same future. Others than the model's are refused."""
    sim, seen = make_engine(max_worlds=2), footage(3)
    latents, _ = sim.model.codec.encode(torch.from_numpy(seen.frames)[None])
    bare = Start(seen.frames[:0], seen.actions, seen.variables, latents=latents[0])
    worlds = sim.open(seen, seed=4), sim.open(bare, seed=4)
    assert identical(*(roll(sim, world, 4) for world in worlds))
    for wrong in (replace(bare, latents=latents[0, :, :2]), replace(bare, latents=latents[0, :2])):
        with pytest.raises(ValueError, match=r"start (latents|actions)"):
            sim.open(wrong, seed=0)


def test_outlook_is_what_the_step_reports_and_moves_nothing():
    sim = make_engine()
    world = sim.open(footage(2), seed=4)
    odds, _ = sim.outlook([world], act(2))
    assert world.block == 0
    assert sim.step([world], act(2))[0].end_probability == pytest.approx(float(odds[0]))


def test_admission_names_the_bytes_and_harms_no_running_world():
    sim = make_engine(max_worlds=1)
    world = sim.open(footage(1), seed=0)
    free = sim.pool.num_free
    with pytest.raises(PoolFull, match=r"needs 5 pages \([\d,]+ bytes\).*max_worlds"):
        sim.open(footage(1), seed=1)
    assert sim.pool.num_free == free
    roll(sim, world, 2)
    sim.close(world)
    sim.close(world)
    assert sim.pool.num_held == 0
    assert sim.pool.reserved == 0


def test_bad_input_is_refused_before_a_world_moves():
    sim = make_engine(max_worlds=2)
    world = sim.open(footage(1), seed=0)
    closed = sim.open(footage(1), seed=0)
    sim.close(closed)
    with pytest.raises(ValueError, match=r"are \[2, 3\]: expected encoded \[1, 3\]"):
        sim.step([world], act(0, block=2))
    with pytest.raises(ValueError, match="2 conditions for 1 worlds"):
        sim.step([world], act(0, 1))
    with pytest.raises(ValueError, match="open"):
        sim.step([closed], act(0))
    with pytest.raises(ValueError, match="twice"):
        sim.step([world, world], act(0, 0))
    with pytest.raises(ValueError, match="start frames are float64"):
        sim.open(Start(np.zeros((1, 32, 32, 3)), np.zeros((1, 3)), np.zeros((1, 1))), seed=0)
    with pytest.raises(ValueError, match="energy"):
        sim.open(Start(np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 3)), np.zeros((1, 2))), seed=0)
    with pytest.raises(ValueError, match="num_steps 0"):
        Engine(sim.model, num_steps=0)
    assert world.block == 0


def test_the_commit_pass_re_noises_at_the_trained_level_and_leaves_the_latent():
    step = commit(0.1)
    clean, noise = torch.ones(3), torch.full((3,), 5.0)
    assert step.commit
    assert step.update is None
    torch.testing.assert_close(step.enter(clean, noise), torch.full((3,), 0.9 * 1 + 0.1 * 5))


@pytest.mark.parametrize("kernel", [attend_dense, attend_fused])
@pytest.mark.parametrize("policy", [KVPolicy(2), KVPolicy(1, 1), KVPolicy(None)])
def test_attention_kernels_match_the_reference(kernel, policy):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5 * 4, 2, 8)
    view = CausalView(policy, tokens=4)
    expected = attend_reference(q, k, v, view.layer(0))
    groups = view.layer(0).extend(q, k, v)
    torch.testing.assert_close(
        torch.cat([kernel(q[:, g.queries], g) for g in groups], 1), expected, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(attend(q, k, v, view.layer(0)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_how_a_sequence_is_chunked_changes_nothing(chunk):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 7 * 4, 2, 8)
    policy = KVPolicy(3, 1)
    whole = attend(q, k, v, CausalView(policy, tokens=4, chunk=7).layer(0))
    torch.testing.assert_close(
        attend(q, k, v, CausalView(policy, tokens=4, chunk=chunk).layer(0)), whole, atol=1e-5, rtol=1e-4
    )


def test_a_block_in_bf16_stays_close_to_fp32():
    spec = TINY
    frames = []
    for dtype in (torch.float32, torch.bfloat16):
        sim = Engine(assemble(spec, make_modules(spec), "cpu", dtype))
        frames.append(sim.step([sim.open(footage(3), seed=0)], act(1))[0].frames.astype(int))
    assert np.abs(frames[0] - frames[1]).mean() < 4


PAGED = [
    (KVPolicy(4), {}),
    (KVPolicy(2, sink=1), {}),
    (KVPolicy(2, sink=1, top_k=2, memory=6), {}),
    (KVPolicy(None), {}),
    (KVPolicy(4), {"kv_dtype": "int8"}),
]


@pytest.mark.parametrize(("policy", "settings"), PAGED)
def test_a_paged_kernel_gives_what_gathering_gives(policy, settings):
    """The plain paged reference in place of gathering, for worlds of different ages."""
    plain, paged = (make_engine(kv=policy, max_worlds=3, **settings) for _ in range(2))
    paged.runner.kernel = attend_reference_paged
    pairs = [[sim.open(footage(k), seed=k) for k in (1, 3, 9)] for sim in (plain, paged)]
    for action in (1, 2, 0, 1, 2, 0):
        blocks = [
            sim.step(worlds, act(action, action, action)) for sim, worlds in zip((plain, paged), pairs, strict=True)
        ]
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(b.latents, a.latents, atol=2e-4, rtol=1e-3)
    assert [b.terminated for b in blocks[0]] == [b.terminated for b in blocks[1]]
    check_pages(paged, pairs[1])


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_host_pages_that_are_known_come_back_a_layer_ahead(kv_dtype, monkeypatch):
    """Explicit pages on the host: the same bits as on the device, each layer's copy started by the one before."""
    policy = KVPolicy(2, sink=1, pages=(2, 4))
    near, far = (make_engine(kv=policy, kv_dtype=kv_dtype, offload=away, max_worlds=2) for away in (False, True))
    started: list[tuple[int, bool]] = []
    start = Ahead._start

    def noted(ahead, layer):
        started.append((layer, layer in ahead.started))
        start(ahead, layer)

    monkeypatch.setattr(Ahead, "_start", noted)
    worlds = [[sim.open(footage(k), seed=k) for k in (3, 8)] for sim in (near, far)]
    for action in (1, 2, 0, 1, 2):
        here, there = (sim.step(w, act(action, action)) for sim, w in zip((near, far), worlds, strict=True))
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(here, there, strict=True))
    assert any(page >= HOST for page in worlds[1][1].table.pages)
    assert (1, True) in started  # layer 1 found its copy under way
    assert far.pool.shelf.num_bytes < near.pool.shelf.num_bytes
