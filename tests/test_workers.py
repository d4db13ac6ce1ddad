"""A sharded engine is an engine: same worlds, same errors; and what it does when one of its ranks fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import engine
from engine import Condition, Engine, ModelSource, ParallelConfig, PoolFull, ShardedEngine, Start, WorkerLost
from engine.noise import GivenNoise
from tests.sharded import CLOSE, SOON, alive, gone, on_two_ranks
from tests.worlds import TINY, make_starts


def start(i: int = 0) -> Start:
    given = make_starts(TINY)
    return Start(given["frames"][i], given["actions"][i], given["variables"][i])


def does(action: int) -> list[Condition]:
    return [Condition.of(np.eye(3, dtype=np.float32)[[action]])]


def same_world(far, near) -> None:
    assert (far.table.length, far.block, far.ended) == (near.table.length, near.block, near.ended)
    assert np.array_equal(far.variables, near.variables)
    assert torch.allclose(far.latents, near.latents, atol=CLOSE, rtol=0)


def same_blocks(far, near) -> None:
    for x, y in zip(far, near, strict=True):
        assert np.abs(x.frames.astype(int) - y.frames).max() <= 1
        assert x.reward == pytest.approx(y.reward, abs=CLOSE)
        assert x.end_probability == pytest.approx(y.end_probability, abs=CLOSE)
        assert x.terminated == y.terminated


@pytest.fixture(scope="module")
def sharded(endless):
    """The two ranks that tests of envs have too; the last two tests here end them."""
    made = on_two_ranks(endless).engine
    made.grow(4)
    return made


@pytest.fixture(scope="module")
def single(endless):
    return Engine(engine.load(endless, dtype="float32"), max_worlds=4)


def test_two_ranks_dream_what_one_dreams(sharded, single):
    assert str(sharded.exchange) == "Ulysses 2"
    assert sharded.plan is None
    assert len(set(sharded.pids)) == 2
    for sim in (sharded, single):
        sim.worlds_open = [sim.open(start(i), seed=i) for i in range(2)]
    for step in range(3):
        conditions = [*does(step % 3), *does(1)]
        same_blocks(sharded.step(sharded.worlds_open, conditions), single.step(single.worlds_open, conditions))
    for far, near in zip(sharded.worlds_open, single.worlds_open, strict=True):
        same_world(far, near)
    odds = [sim.outlook(sim.worlds_open, [*does(0), *does(2)]) for sim in (sharded, single)]
    np.testing.assert_allclose(odds[0], odds[1], atol=CLOSE)
    for sim in (sharded, single):
        sim.observe(sim.worlds_open[1], start(3))
    same_world(sharded.worlds_open[1], single.worlds_open[1])


def test_variables_that_a_caller_sets_reach_the_ranks(sharded, single):
    for sim in (sharded, single):
        sim.worlds_open[1].variables[:] = 55.0
    blocks = [sim.step(sim.worlds_open[1:], does(0)) for sim in (sharded, single)]
    same_blocks(*blocks)
    assert blocks[0][0].variables <= 55.0
    same_world(sharded.worlds_open[1], single.worlds_open[1])


def test_forks_and_snapshots(sharded, single):
    """A snapshot of two ranks is restored on one, and the other way round; forks go their own way."""
    blobs = [sim.snapshot(sim.worlds_open[0]) for sim in (sharded, single)]
    there, here = sharded.restore(blobs[1]), single.restore(blobs[0])
    same_blocks(sharded.step([there], does(2)), single.step([here], does(2)))
    for sim in (sharded, single):
        [sim.fork_made] = sim.fork(sim.worlds_open[0], seeds=[99])
    same_blocks(sharded.step([sharded.fork_made], does(2)), single.step([single.fork_made], does(2)))
    same_world(sharded.worlds_open[0], single.worlds_open[0])
    assert not torch.equal(sharded.fork_made.latents, there.latents)
    for sim, extra in ((sharded, there), (single, here)):
        sim.close(extra)
        sim.close(sim.fork_made)
        sim.close(sim.fork_made)


def test_an_error_that_all_ranks_raise_is_the_one_of_one_device(sharded, single):
    """And the ranks go on: after each of them a step is made."""

    def refused(sim, kind, doing) -> str:
        with pytest.raises(kind) as caught:
            doing(sim)
        return str(caught.value)

    world = {sharded: sharded.worlds_open[0], single: single.worlds_open[0]}
    small = refused(sharded, PoolFull, lambda sim: sim.fork(world[sim], 99))
    assert small.startswith("99 forks of a world needs 495 pages (506,880 bytes)")  # a rank has half of every page
    wrong = [
        (ValueError, lambda sim: sim.fork(world[sim], 0)),
        (ValueError, lambda sim: sim.restore(b"nothing")),
        (ValueError, lambda sim: sim.step([world[sim]], [Condition.of(np.zeros((2, 3), np.float32))])),
        (
            ValueError,
            lambda sim: sim.open(Start(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 3)), np.zeros((1, 1))), 0),
        ),
        (ValueError, lambda sim: sim.contextualise(text=torch.zeros(1, 2))),
        (ValueError, lambda sim: engine.prompt_context(sim, "a cat")),
        (ValueError, lambda sim: engine.scene(sim, "a cat")),
    ]
    for kind, doing in wrong:
        assert refused(sharded, kind, doing) == refused(single, kind, doing)
    assert "noise" in refused(sharded, ValueError, lambda sim: sim.open(start(), 0, GivenNoise({})))
    assert "another engine" in refused(sharded, ValueError, lambda sim: sim.step([single.worlds_open[0]], does(0)))
    same_blocks(sharded.step([world[sharded]], does(1)), single.step([world[single]], does(1)))


def test_a_second_opinion(sharded, single):
    made = []
    for sim in (sharded, single):
        before = sim.worlds_open[0].latents
        with engine.held(sim, sim.worlds_open[:1]) as forks:
            sim.step(sim.worlds_open[:1], does(0))
            latents = torch.stack([sim.worlds_open[0].latents])
            made.append(engine.second_opinion(sim, forks, does(0), latents, 0.5))
        assert not torch.equal(before, sim.worlds_open[0].latents)
    assert torch.allclose(*made, atol=CLOSE)


def test_a_killed_rank_ends_the_step_and_new_ranks_go_on_to_the_bit(sharded):
    """Against the world's own future: a snapshot dreamed on before the fault."""
    world = sharded.worlds_open[0]
    sharded.step([world], does(0))
    ahead = sharded.restore(sharded.snapshot(world))
    expected = [sharded.step([ahead], does(i)) for i in (1, 2)]
    sharded.close(ahead)
    held, pids = world.latents.clone(), sharded.pids
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=r"rank 1 died: its process was killed by SIGKILL"):
        sharded.step([world], does(1))
    assert time.monotonic() - began < 30
    assert gone(pids)
    with pytest.raises(WorkerLost, match=r"rank 1 died.*recover"):
        sharded.step([world], does(1))
    sharded.close(sharded.worlds_open[1])
    sharded.recover()
    assert not set(pids) & set(sharded.pids)
    assert torch.equal(world.latents, held)
    again = [sharded.step([world], does(i)) for i in (1, 2)]
    assert all(np.array_equal(x[0].frames, y[0].frames) for x, y in zip(again, expected, strict=True))
    assert [x[0].reward for x in again] == [x[0].reward for x in expected]


def test_a_stopped_rank_ends_the_step(sharded):
    """The last of these: it leaves no ranks behind. Nothing that it runs waits for the caller to end."""
    pids = sharded.pids
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=r"rank 1 gave no sign of life for 4 s: its process is stopped"):
        sharded.step([sharded.worlds_open[0]], does(1))
    assert time.monotonic() - began < 2 * SOON
    assert gone(pids)


# Slow: processes of their own.

LAUNCHED = """
import numpy as np
from engine import Condition, ModelSource, ParallelConfig, ShardedEngine, Start
from tests.test_workers import does, start
sim = ShardedEngine(ModelSource.of({world!r}, "float32"), ParallelConfig(exchange="ring", timeout=20.0))
world = sim.open(start(), seed=3)
print("STEPPED", sim.exchange, [sim.step([world], does(i))[0].reward for i in range(2)], flush=True)
"""


def launched(world: Path, rank: int, port: int) -> subprocess.Popen:
    """One process of a launcher that sets torchrun's variables, and keeps no store itself."""
    told = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(x) for name, x in told.items()}
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHED.format(world=str(world))], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_ranks_that_torchrun_started_serve_and_exit_with_status_0(endless, single):
    port = free_port()
    ranks = [launched(endless, rank, port) for rank in range(2)]
    out, err = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode == 0, err
    assert ranks[1].communicate(timeout=30)[0] == ""
    assert ranks[1].returncode == 0
    world = single.open(start(), seed=3)
    rewards = [single.step([world], does(i))[0].reward for i in range(2)]
    single.close(world)
    assert out.startswith("STEPPED ring pass-KV 2 ")
    np.testing.assert_allclose(eval(out.split("2 ", 1)[1]), rewards, atol=CLOSE)


@pytest.mark.slow
def test_a_rank_with_another_model_is_refused(endless, tiny):
    port = free_port()
    ranks = [launched(world, rank, port) for rank, world in enumerate((endless, tiny))]
    _, err = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode == 1
    assert "ValueError: rank 1 runs weights" in err
    assert ranks[1].wait(timeout=30) != 0


INTERRUPTED = """
import signal
from engine import ModelSource, ParallelConfig, ShardedEngine
from tests.test_workers import does, start
sim = ShardedEngine(ModelSource.of({world!r}, "float32"), ParallelConfig(2, "ulysses"))
world = sim.open(start(), seed=3)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs are started without
print(*sim.pids, flush=True)
while True:
    sim.step([world], does(0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_its_caller(endless, how):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(world=str(endless))], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    pids = [int(x) for x in process.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    if how == signal.SIGKILL:
        os.kill(pids[0], signal.SIGSTOP)  # a stopped rank cannot see that its caller is gone
    time.sleep(0.5)
    process.send_signal(how)
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert gone(pids)
    assert "Traceback" not in err or err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
def test_a_rank_out_of_memory_ends_the_step(endless, monkeypatch):
    """The rank runs into its own limit of address space; the other waits for it in a collective."""
    import resource

    sim = ShardedEngine(ModelSource.of(endless, "float32"), ParallelConfig(2, "ulysses", timeout=10.0))
    world = sim.open(start(), seed=3)
    sim.step([world], does(0))
    used = int(Path(f"/proc/{sim.pids[1]}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(sim.pids[1], resource.RLIMIT_AS, (used, used))
    with pytest.raises(WorkerLost, match=r"rank 1 (ran out of memory|died)"):
        sim.grow(200_000)
    assert gone(sim.pids)
