"""A codec on a rank of its own: the same frames, made while the other ranks go on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from engine import Condition, Engine, load
from engine.parallel.beside import CodecBeside, DecodingRank, StateThere, denoising_mesh
from engine.parallel.layout import Exchange
from engine.parallel.sharding import shard
from engine.parallel.tiles import alone, shared_state, whole_state
from engine.published import Rollout
from engine.spec import WorldSpec
from engine.world import Start
from tests.ranks import run
from tests.test_tiles import alike, latents_of, make, near
from tests.worlds import TINY, make_starts


def start_of(spec: WorldSpec) -> Start:
    given = make_starts(spec, 1)
    return Start(given["frames"][0], given["actions"][0], given["variables"][0].astype(np.float64))


def condition_of(spec: WorldSpec, i: int) -> Condition:
    return Condition.of(np.eye(spec.actions.width, dtype=np.float32)[[i % spec.actions.width]])


def played(rank: int, folder: str, blocks: int, exchange: Exchange) -> list[Any]:
    """A block is made before the last rank decodes any; rewards of the ranks that denoise, frames of that one."""
    mesh, model = denoising_mesh(exchange), load(folder)
    if mesh is None:
        assert rank == exchange.ranks
        there, made = DecodingRank(model.codec), []
        for i in range(blocks):
            if i == 0:
                dist.barrier()
            made += there.serve().values()
        assert len(there.states) == 1
        return made
    codec: Any = CodecBeside(model.codec, model.spec)
    sim = Engine(replace(shard(model, mesh, codec=codec), codec=codec))
    world, rewards = sim.open(start_of(model.spec), 5), []
    for i in range(blocks):
        [block] = sim.step([world], [condition_of(model.spec, i)])
        codec.done()
        assert block.pictures.numel() == 0
        rewards.append(block.reward)
        if i == 0:
            dist.barrier()
    assert isinstance(world.codec_state, StateThere)
    codec.close()
    return rewards


@pytest.mark.parametrize("exchange", [Exchange(), pytest.param(Exchange(2), marks=pytest.mark.slow)], ids=str)
def test_frames_come_from_the_last_rank(tiny, exchange):
    sim = Engine(load(tiny))
    world, blocks = sim.open(start_of(sim.spec), 5), []
    for i in range(3):
        blocks += sim.step([world], [condition_of(sim.spec, i)])
    *rewards, frames = run(played, str(tiny), 3, exchange, ranks=exchange.ranks + 1)
    assert all(own == pytest.approx([b.reward for b in blocks], abs=1e-5) for own in rewards)
    for made, block in zip(frames, blocks, strict=True):
        assert alike(made, block.pictures)


def two_worlds(codec: Any) -> tuple[list[Tensor], list[Any]]:
    """Two worlds, one of which is forked and one of which is joined late; frames in order, and the last states."""
    z, made = latents_of("wan", worlds=2), []
    frames, (a, b) = codec.decode(z[0])
    made += frames
    frames, (a, c, d) = codec.decode(torch.stack([z[1, 0], z[1, 1], z[2, 0]]), [a, b, b])
    made += frames
    frames, (e,) = codec.decode(z[2, :1], [None])
    return [*made, *frames], [a, c, d, e]


@torch.inference_mode()
def kept(rank: int) -> Any:
    """The first rank's whole states, before and after they went there once more; the frames of the last one."""
    codec = make("wan")
    if rank:
        there = DecodingRank(codec)
        frames, counts = there.serve(), [len(there.states)]
        after = there.serve()
        there.line.finish()
        return [*frames.values()], [*after.values()], [*counts, len(there.states)]
    beside = CodecBeside(codec, TINY)
    assert alone(beside) is codec
    _, states = two_worlds(beside)
    wholes = [whole_state(beside, state) for state in states]
    beside.done()
    again = [shared_state(beside, whole) for whole in wholes]
    wholes += [whole_state(beside, state) for state in again]
    del states
    beside.decode(latents_of("wan")[1], again[:1])
    beside.done()
    beside.close()
    assert beside.whole(None) is beside.share(None) is None
    return wholes


@torch.inference_mode()
def test_states_live_there_and_come_back_for_snapshots():
    codec = make("wan")
    frames, states = two_worlds(codec)
    wholes, (made, after, counts) = run(kept)
    assert all(alike(a, b) for a, b in zip(made, frames, strict=True))
    assert all(near(a, b) for a, b in zip(wholes, 2 * states, strict=True))
    assert alike(after[0], codec.decode(latents_of("wan")[1], states[:1])[0][0])
    assert counts == [4, 4]  # of seven, those that are still held; then, those that were given anew


def wrong(rank: int) -> str:
    with pytest.raises(ValueError) as error:
        denoising_mesh(Exchange(2))
    return str(error.value)


def test_what_cannot_be():
    assert run(wrong)[0].startswith("Ulysses 2 and a rank for the codec need 3 ranks, and the process group has 2")
    spec = replace(TINY, rollout=Rollout((1.0,), restart=(21, 3)))
    with pytest.raises(ValueError, match="begins its history anew from its last frames"):
        CodecBeside(None, spec)
