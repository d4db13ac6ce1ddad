"""Worlds are values: the same alone and among others, forked, saved and restored."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from engine import Engine, KVPolicy, PoolFull
from engine.kv.pool import HOST
from tests.sims import act, check_pages, footage, identical, make_engine, roll

POLICIES = [
    KVPolicy(4),
    KVPolicy(3, sink=2),
    KVPolicy(None),
    KVPolicy(3, pages=(1, 4)),
    KVPolicy(3, sink=1, top_k=2, memory=6),
]


def rows_of(sim: Engine, seeds, steps: int, beside: int = 0) -> list[list]:
    """Rollouts of several worlds in one call a step, with `beside` others that join late and leave early."""
    worlds = [sim.open(footage(1 + seed % 5, seed), seed) for seed in seeds]
    made: list[list] = [[] for _ in worlds]
    others: list = []
    for t in range(steps):
        if t == 2:
            others = [sim.open(footage(7, 90 + i), 90 + i) for i in range(beside)]
        if t == 5:
            for world in others:
                sim.close(world)
            others = []
        actions = [(t + seed) % 3 for seed in seeds] + [t % 3] * len(others)
        blocks = sim.step([*worlds, *others], act(*actions))
        for row, block in zip(made, blocks[: len(worlds)], strict=True):
            row.append(block)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_world_is_the_same_to_the_bit_whoever_is_beside_it(policy, dtype):
    seeds = [3, 8, 4, 11, 7]
    alone = [rows_of(make_engine(dtype, policy=policy), [seed], 9)[0] for seed in seeds]
    together = rows_of(make_engine(dtype, policy=policy, max_worlds=9), seeds, 9, beside=3)
    turned = rows_of(make_engine(dtype, policy=policy, max_worlds=5), seeds[::-1], 9)[::-1]
    for one, two, three in zip(alone, together, turned, strict=True):
        assert identical(one, two)
        assert identical(one, three)


def test_the_fast_path_agrees_to_rounding():
    slow, fast = (make_engine(max_worlds=5, deterministic=d) for d in (True, False))
    for one, two in zip(rows_of(slow, range(5), 6), rows_of(fast, range(5), 6), strict=True):
        for a, b in zip(one, two, strict=True):
            assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
            assert a.end_probability == pytest.approx(b.end_probability, abs=1e-4)


def test_forks_share_pages_until_they_move_and_then_go_their_own_ways():
    sim = make_engine(max_worlds=5)
    world = sim.open(footage(6), seed=2)
    roll(sim, world, 3)
    held = sim.pool.num_held
    same, other, luckier, original = [*sim.fork(world, 2), *sim.fork(world, seeds=[99]), world]
    assert sim.pool.num_held == held
    assert same.table.pages == original.table.pages
    future = roll(sim, same, 8)
    assert not identical(future, roll(sim, other, 8, seed=5))
    assert not identical(future, roll(sim, luckier, 8))
    assert identical(future, roll(sim, original, 8))
    for w in (same, other, luckier, original):
        sim.close(w)
    assert sim.pool.num_held == sim.pool.reserved == 0


def test_a_fork_that_does_not_fit_takes_nothing():
    sim = make_engine(max_worlds=3)
    world = sim.open(footage(2), seed=0)
    with pytest.raises(PoolFull, match=r"3 forks of a world needs 15 pages \([\d,]+ bytes\).*kv_dtype"):
        sim.fork(world, 3)
    assert sim.pool.reserved == sim.need
    assert len(sim.fork(world, 2)) == 2
    for arguments in ({"n": 0}, {"n": 2, "seeds": [1]}):
        with pytest.raises(ValueError, match="expected at least one fork"):
            sim.fork(world, **arguments)
    sim.close(world)
    for gone in (lambda: sim.fork(world), lambda: sim.snapshot(world)):
        with pytest.raises(ValueError, match="needs an open world"):
            gone()


def test_growing_makes_room_and_disturbs_no_world():
    small, large = make_engine(max_worlds=1), make_engine(max_worlds=3)
    one, two = small.open(footage(3), 1), large.open(footage(3), 1)
    assert identical(roll(small, one, 5), roll(large, two, 5))
    small.grow(3)
    small.open(footage(2), 8)
    assert identical(roll(small, one, 9, seed=3), roll(large, two, 9, seed=3))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8"])
def test_a_snapshot_is_the_world_to_the_bit(policy, kv_dtype, tmp_path):
    first, second = (make_engine(policy=policy, kv_dtype=kv_dtype, max_worlds=2) for _ in range(2))
    world = first.open(footage(6), seed=2)
    roll(first, world, 5)
    first.save(world, tmp_path / "world.safetensors")
    copies = [first.restore(first.snapshot(world)), second.restore(tmp_path / "world.safetensors")]
    future = roll(first, world, 12)
    assert identical(future, roll(first, copies[0], 12))
    assert identical(future, roll(second, copies[1], 12))


CHILD = """
import sys
from tests.sims import make_engine, roll
sim = make_engine()
world = sim.restore(sys.argv[1])
for block in roll(sim, world, 40):
    sys.stdout.buffer.write(block.frames.tobytes() + repr((block.reward, block.end_probability)).encode())
"""


def test_another_process_goes_on_where_the_snapshot_was_taken(tmp_path):
    sim = make_engine()
    world = sim.open(footage(6), seed=2)
    roll(sim, world, 7)
    sim.save(world, tmp_path / "world.safetensors")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "world.safetensors")]
    theirs = subprocess.run(command, capture_output=True, check=True).stdout
    ours = [b.frames.tobytes() + repr((b.reward, b.end_probability)).encode() for b in roll(sim, world, 40)]
    assert theirs == b"".join(ours)


def test_what_is_no_fitting_snapshot_is_refused_and_leaves_nothing_open(tmp_path):
    sim = make_engine(max_worlds=2)
    world = sim.open(footage(3), seed=2)
    blob = sim.snapshot(world)
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    newer = json.dumps({**header, "__metadata__": {**header["__metadata__"], "version": "9"}}).encode()
    flipped = bytearray(blob)
    flipped[-5] ^= 1
    bad = {
        "truncated": blob[:-100],
        "truncated or no": b"hello",
        "damaged": bytes(flipped),
        "version 9": len(newer).to_bytes(8, "little") + newer + blob[8 + size :],
        "model '": snapshot_of(make_engine(seed=1)),
        "policy": snapshot_of(make_engine(policy=KVPolicy(5))),
        "num_steps 1": snapshot_of(make_engine(num_steps=1)),
        "kv_dtype 'int8', here None": snapshot_of(make_engine(kv_dtype="int8")),
    }
    for message, blob in bad.items():
        with pytest.raises(ValueError, match=message):
            sim.restore(blob)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        sim.restore(tmp_path / "nothing")
    assert sim.pool.reserved == sim.need
    assert sim.pool.num_held == 3


def snapshot_of(sim: Engine) -> bytes:
    return sim.snapshot(sim.open(footage(3), seed=2))


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    sim = make_engine()
    world, path = sim.open(footage(3), seed=2), tmp_path / "world.safetensors"
    sim.save(world, path)
    before = path.read_bytes()
    roll(sim, world, 2)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sim.save(world, path)
    assert path.read_bytes() == before


def test_pages_on_the_host_save_the_devices_bytes_and_change_no_bit():
    policy = KVPolicy(3, sink=1, pages=(2,), top_k=2, memory=12)
    near, far = make_engine(policy=policy), make_engine(policy=policy, offload=True)
    worlds = [sim.open(footage(5), seed=2) for sim in (near, far)]
    assert identical(roll(near, worlds[0], 20), roll(far, worlds[1], 20))
    assert sum(page >= HOST for page in worlds[1].table.pages) == 13
    assert far.pool.shelf.num_bytes < near.pool.shelf.num_bytes / 2
    blob = far.snapshot(worlds[1])
    assert far.pool.num_held == near.pool.num_held
    far.close(worlds[1])
    assert far.pool.num_held == far.pool.reserved == far.pool.host_reserved == 0
    assert identical(roll(near, worlds[0], 6), roll(far, far.restore(blob), 6))


class Worlds(RuleBasedStateMachine):
    """Random lives of worlds in a small pool: no page is lost, shared by mistake or freed twice."""

    worlds = Bundle("worlds")
    sim: Engine

    def __init__(self):
        super().__init__()
        policy = KVPolicy(2, sink=1, top_k=1, memory=2)
        self.sim = make_engine(max_worlds=4, policy=policy, num_steps=1, offload=True)
        self.open: list = []

    def admitted(self, make):
        """What `make` opens, or nothing where the pool is full: it then holds what it held."""
        held, reserved = self.sim.pool.num_held, self.sim.pool.reserved
        try:
            made = make()
        except PoolFull:
            assert (self.sim.pool.num_held, self.sim.pool.reserved) == (held, reserved)
            return multiple()
        self.open += made
        return multiple(*made)

    @rule(target=worlds, seed=st.integers(0, 5), frames=st.integers(1, 6))
    def opens(self, seed, frames):
        return self.admitted(lambda: [self.sim.open(footage(frames, seed), seed)])

    @rule(world=worlds, action=st.integers(0, 2))
    def steps(self, world, action):
        if world.open:
            self.sim.step([world], act(action))

    @rule(action=st.integers(0, 2))
    def all_step(self, action):
        if self.open:
            self.sim.step(self.open, act(*[action] * len(self.open)))

    @rule(target=worlds, world=worlds, n=st.integers(1, 2))
    def forks(self, world, n):
        return self.admitted(lambda: self.sim.fork(world, n)) if world.open else multiple()

    @rule(target=worlds, world=worlds)
    def restores(self, world):
        return self.admitted(lambda: [self.sim.restore(self.sim.snapshot(world))]) if world.open else multiple()

    @rule(world=worlds)
    def closes(self, world):
        self.sim.close(world)
        self.open = [w for w in self.open if w is not world]

    @invariant()
    def every_page_is_accounted_for(self):
        check_pages(self.sim, self.open)


Worlds.TestCase.settings = hypothesis_settings(max_examples=15, stateful_step_count=15, deadline=None)
TestWorlds = Worlds.TestCase
