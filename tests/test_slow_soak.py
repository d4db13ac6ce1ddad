"""A long life of the engine: worlds are opened, forked, saved, restored and closed at random for thousands of steps.

Sixteen worlds step together throughout. After every step each page is accounted for and every number is finite;
memory stays where it was after the warm-up, and the pool is as good at the end as a new one.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Engine, KVPolicy, PoolFull, World
from tests.sims import act, check_pages, footage, identical, make_engine, roll

pytestmark = pytest.mark.slow

STEPS = 20_000
NUM_WORLDS = 16
EVENTS = 0.3  # chance that something besides the step happens
SAMPLES = 20  # readings of the memory, of which the first is the warm-up
GROWTH = 6.0  # MB by which the others may differ: a leak of one world's latents a step would be 20 and more

# As an engine is opened by default, and with all that a pool can do: the fast path, since its pages cost more.
PLAIN = {"num_steps": 1}
RICH = {
    "policy": KVPolicy(2, sink=1, top_k=1, memory=3),
    "kv_dtype": "int8",
    "offload": True,
    "deterministic": False,
    "num_steps": 1,
}
STATM = Path("/proc/self/statm")


def resident() -> float:
    """MB of memory that this process holds, garbage aside."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Life:
    """Sixteen worlds of one engine. The first is never replaced; a few snapshots are kept of the others."""

    def __init__(self, sim: Engine, seed: int):
        self.sim, self.rng = sim, np.random.default_rng(seed)
        self.worlds = [self.opened() for _ in range(NUM_WORLDS)]
        self.blobs = [sim.snapshot(self.worlds[1])]
        self.events = [self.reopens, self.forks, self.keeps, self.restores, self.is_refused]
        self.counts = dict.fromkeys((event.__name__ for event in self.events), 0)

    def opened(self) -> World:
        start = footage(int(self.rng.integers(1, 7)), int(self.rng.integers(8)))
        return self.sim.open(start, int(self.rng.integers(2**63)))

    def closed(self, count: int = 1) -> list[int]:
        """Places of worlds just closed."""
        places = self.rng.choice(np.arange(1, NUM_WORLDS), count, replace=False).tolist()
        for place in places:
            self.sim.close(self.worlds[place])
        return places

    def reopens(self) -> None:
        [place] = self.closed()
        self.worlds[place] = self.opened()

    def forks(self) -> None:
        places = self.closed(int(self.rng.integers(1, 4)))
        parent = self.worlds[self.rng.choice([i for i in range(NUM_WORLDS) if i not in places])]
        seeds = self.rng.integers(2**63, size=len(places)).tolist() if self.rng.random() < 0.5 else None
        for place, fork in zip(places, self.sim.fork(parent, len(places), seeds), strict=True):
            self.worlds[place] = fork

    def keeps(self) -> None:
        world = self.worlds[self.rng.integers(NUM_WORLDS)]
        self.blobs = [*self.blobs[-3:], self.sim.snapshot(world)]

    def restores(self) -> None:
        [place] = self.closed()
        self.worlds[place] = self.sim.restore(self.blobs[self.rng.integers(len(self.blobs))])

    def is_refused(self) -> None:
        for admit in (self.opened, lambda: self.sim.fork(self.worlds[0]), lambda: self.sim.restore(self.blobs[0])):
            with pytest.raises(PoolFull):
                admit()

    def step(self) -> None:
        if self.rng.random() < EVENTS:
            event = self.events[self.rng.integers(len(self.events))]
            event()
            self.counts[event.__name__] += 1
            check_pages(self.sim, self.worlds)
        blocks = self.sim.step(self.worlds, act(*self.rng.integers(0, 3, NUM_WORLDS)))
        check_pages(self.sim, self.worlds)
        check_numbers(self.sim, self.worlds, blocks)


def check_numbers(sim: Engine, worlds: list[World], blocks: list) -> None:
    [energy] = sim.spec.variables
    assert torch.stack([world.latents for world in worlds]).isfinite().all()
    assert torch.stack([world.head_state for world in worlds]).isfinite().all()
    assert np.isfinite([block.reward for block in blocks]).all()
    assert all(0 <= block.end_probability <= 1 for block in blocks)
    assert all(energy.low <= block.variables[0] <= energy.high for block in blocks)


def check_as_new(worn: Engine, new: Engine, elder: World) -> None:
    """A world of any age, and one just opened, have the future that they have in an engine never used."""
    theirs = new.restore(worn.snapshot(elder))
    assert identical(roll(worn, elder, 20), roll(new, theirs, 20))
    pair = [sim.open(footage(5), 3) for sim in (worn, new)]
    assert identical(roll(worn, pair[0], 20), roll(new, pair[1], 20))
    worn.close(pair[0])


@pytest.mark.skipif(not STATM.exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize(("settings", "steps"), [(PLAIN, STEPS // 4), (RICH, STEPS)], ids=["plain", "rich"])
def test_thousands_of_steps_leave_memory_numbers_and_pages_in_order(settings, steps):
    sim, new = (make_engine(max_worlds=NUM_WORLDS, **settings) for _ in range(2))
    life, memory = Life(sim, seed=0), []
    for step in range(1, steps + 1):
        life.step()
        if step % max(1, steps // SAMPLES) == 0:
            memory.append(resident())
    settled = memory[1:]
    assert max(settled) - min(settled) < GROWTH, f"MB, {SAMPLES} times on the way: {np.round(memory, 1)}"
    assert min(life.counts.values()) > 0
    elder, *others = life.worlds
    assert elder.block == steps
    for world in others:
        sim.close(world)
    check_as_new(sim, new, elder)
    sim.close(elder)
    check_pages(sim, [])
    assert sim.pool.num_held == sim.pool.reserved == sim.pool.host_reserved == 0
