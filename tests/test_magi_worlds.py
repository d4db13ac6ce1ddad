"""Worlds with several blocks in flight: forks, snapshots, batches, prompts, prefixes, failures, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine import KVPolicy, Start
from engine.stages import legs
from tests.magi_sims import begin, checkpoint, given, make_sim, prompt, roll, rollout, same, step
from tests.sims import FailsAtItsSecondCall, check_pages

BOTH = pytest.mark.parametrize("distill", [True, False], ids=["distilled", "base"])


@BOTH
@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_rollout_takes_the_same_pages_for_ever(distill, window):
    sim = make_sim(distill, window=window)
    world = begin(sim)
    held = []
    for _ in range(window + 6):
        [block] = step(sim, [world])
        assert block.frames.shape == (8, 32, 48, 3)
        check_pages(sim, [world])
        held.append(sim.pool.num_held)
    assert len(set(held[5:])) == 1
    assert held[-1] == 2 * sim.spec.staggered.reach
    assert world.flight.shape[0] == 2 * window
    sim.close(world)
    assert sim.pool.num_held == 0


@BOTH
def test_a_fork_has_the_same_future_and_another_seed_only_changes_what_enters(distill):
    sim = make_sim(distill, max_worlds=3)
    world = begin(sim)
    roll(sim, world, 2)
    [twin, other] = sim.fork(world, 2, seeds=[0, 77])
    futures = [roll(sim, w, 6) for w in (world, twin, other)]
    assert same(futures[0], futures[1])
    # Three blocks are in flight already: the fourth is the first that the other seed made.
    assert same(futures[0][:3], futures[2][:3])
    assert not torch.equal(futures[0][3], futures[2][3])
    check_pages(sim, [world, twin, other])


@BOTH
@pytest.mark.parametrize("age", [0, 1, 3])
def test_a_snapshot_has_the_same_future(distill, age):
    sim = make_sim(distill, max_worlds=3)
    world = begin(sim, frames=5, horizon=9)
    roll(sim, world, age, {1: prompt(sim, 5)})
    again = sim.restore(sim.snapshot(world))
    assert again.reserved == world.reserved
    assert same(roll(sim, world, 5), roll(sim, again, 5))
    check_pages_of_long(sim, [world, again])


@BOTH
def test_worlds_of_any_age_and_prompt_share_a_call_to_the_bit(distill):
    sim, alone = make_sim(distill, max_worlds=5), make_sim(distill, max_worlds=2)
    worlds = [begin(sim, seed=i, frames=f) for i, f in enumerate((0, 0, 5, 1))]
    roll(sim, worlds[0], 3)
    blocks = [step(sim, worlds) for _ in range(3)]
    for i, (frames, before) in enumerate(((0, 3), (0, 0), (5, 0), (1, 0))):
        world = begin(alone, seed=i, frames=frames)
        roll(alone, world, before)
        for block in blocks:
            [expected] = step(alone, [world])
            assert torch.equal(expected.pictures, block[i].pictures)
        alone.close(world)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_prompt_shows_once_the_block_that_enters_with_it_is_finished(window):
    sim = make_sim(window=window, max_worlds=2)
    plain, steered = begin(sim), begin(sim)
    expected, made = roll(sim, plain, 7), roll(sim, steered, 7, {2: prompt(sim, 6)})
    changed = [not torch.equal(a, b) for a, b in zip(expected, made, strict=True)]
    assert changed == [i >= 2 + window - 1 for i in range(7)]


def test_steps_may_be_chosen_when_an_engine_is_opened():
    sim = make_sim(num_steps=12)
    assert sum(len(leg.passes) for leg in legs(rollout(True, num_steps=12), True)) == len(sim.passes) == 3
    world = begin(sim)
    assert torch.isfinite(torch.cat(roll(sim, world, 2))).all()
    with pytest.raises(ValueError, match="num_steps 7"):
        make_sim(num_steps=7)


@BOTH
def test_a_video_goes_on_where_it_ended_and_a_picture_is_part_of_the_first_block(distill):
    sim = make_sim(distill, max_worlds=4)
    frames = {k: begin(sim, frames=k) for k in (1, 4, 5)}
    first = {k: step(sim, [world])[0].frames for k, world in frames.items()}
    assert [len(first[k]) for k in (1, 4, 5)] == [8, 8, 4]
    assert frames[5].given is not None
    step(sim, list(frames.values()))
    assert frames[5].given is None
    check_pages_of_long(sim, list(frames.values()))


def check_pages_of_long(sim, worlds):
    """As check_pages, of worlds that were admitted with more than most."""
    assert sim.pool.reserved == sum(w.reserved[0] for w in worlds)
    assert sim.pool.num_held == sum(len(w.table.pages) for w in worlds)
    for world in worlds:
        sim.close(world)
    assert sim.pool.reserved == sim.pool.num_held == 0


def test_a_long_video_is_admitted_with_all_that_its_first_block_sees():
    sim = make_sim(max_worlds=3)
    world = begin(sim, frames=14)
    assert world.reserved == (10, 0)
    assert len(world.table.pages) == 8
    roll(sim, world, 2)
    assert len(world.table.pages) == 2
    check_pages_of_long(sim, [world])


@BOTH
def test_a_leg_that_fails_leaves_worlds_as_they_were(distill):
    sim = make_sim(distill, max_worlds=2)
    world, twin = begin(sim), begin(sim)
    roll(sim, world, 2)
    roll(sim, twin, 2)
    denoiser = sim.runner.model.denoiser
    sim.runner.model = replace(sim.runner.model, denoiser=FailsAtItsSecondCall(denoiser))
    with pytest.raises(MemoryError):
        step(sim, [world])
    sim.runner.model = replace(sim.runner.model, denoiser=denoiser)
    check_pages(sim, [world, twin])
    assert same(roll(sim, world, 3), roll(sim, twin, 3))


def test_eight_bit_pages_change_little():
    plain, small = make_sim(), make_sim(kv_dtype="int8")
    a, b = roll(plain, begin(plain), 5), roll(small, begin(small), 5)
    assert same(a[:1], b[:1])
    errors = [float((x - y).norm() / x.norm()) for x, y in zip(a, b, strict=True)]
    assert 0 < max(errors) < 0.05


def test_a_horizon_changes_the_last_blocks_alone():
    sim = make_sim(max_worlds=2)
    context = prompt(sim)
    context = replace(context, ending=tuple(prompt(sim, 20 + i) for i in range(3)))
    endless, ending = (sim.open(Start.of(context, horizon=h), seed=0) for h in (None, 6))
    changed = [not torch.equal(a, b) for a, b in zip(roll(sim, endless, 6), roll(sim, ending, 6), strict=True)]
    assert changed == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda sim: sim.open(Start.of(None, given(sim, 2)), seed=0), "give the start a context"),
        (lambda sim: sim.open(Start.of(prompt(sim), given(sim, 2)[:, :3]), seed=0), r"start latents are \[2, 3"),
        (lambda sim: begin(sim, horizon=0), "horizon 0"),
        (lambda sim: step(sim, [sim.open(Start.of(), seed=0)]), "needs a prompt or an image"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_moves(make, message):
    sim = make_sim()
    with pytest.raises(ValueError, match=message):
        make(sim)
    assert sim.pool.num_held == 0


def test_nothing_can_come_before_what_is_in_flight():
    sim = make_sim()
    world = begin(sim)
    roll(sim, world, 1)
    with pytest.raises(ValueError, match="in flight already"):
        sim.observe(world, Start.of(latents=given(sim, 2)))


def test_policies_that_staggered_blocks_cannot_follow_are_refused():
    for policy in (KVPolicy(3), KVPolicy(2, sink=2), KVPolicy(2, top_k=1, memory=4)):
        with pytest.raises(ValueError, match="whole blocks"):
            make_sim(policy=policy)


def test_the_config_beside_the_weights_says_how_they_are_run():
    import engine

    loaded = engine.load(checkpoint(True), "cpu", "float32", codec="preview")
    assert (loaded.spec.block, loaded.spec.frame, loaded.spec.staggered.num_steps) == (2, (32, 48), 8)
    assert type(loaded.spec).from_dict(loaded.spec.to_dict()) == loaded.spec
    with pytest.raises(ValueError, match="preset is for base models"):
        engine.load(checkpoint(True), "cpu", "float32", "magi-4.5b-base", codec="preview")
    with pytest.raises(ValueError, match="codec 'vae' needs"):
        engine.load(checkpoint(True), "cpu", "float32")
