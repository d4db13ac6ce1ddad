"""The shipped Doom world at its own size: cache, precision, snapshots, and a long game through Gymnasium."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import inferix_env  # noqa: F401  (registers the ids)
from engine import Block, Condition, Engine, Start, World, load
from inferix_env import worlds
from tests.sims import Uncached

pytestmark = pytest.mark.slow

FOLDER = worlds.HERE / "doom_take_cover"
CACHED_STEPS = 60
ENV_STEPS = 600
REPEATED = 51  # the reset and 50 steps


@cache
def model(dtype: str):
    return load(FOLDER, dtype=dtype)


def start(index: int) -> Start:
    """The opening of a real episode."""
    return Start(*(column[index] for column in worlds.starts(FOLDER)))


def conditions(count: int, seed: int) -> list[Condition]:
    """Random actions, one a step."""
    width = model("float32").spec.actions.width
    choices = np.random.default_rng(seed).integers(width, size=count)
    return [Condition.of(np.eye(width, dtype=np.float32)[[choice]]) for choice in choices]


def digest(block: Block) -> str:
    """What a step gave, to the bit, in short."""
    told = np.array([block.reward, block.end_probability, block.terminated, *block.variables])
    return hashlib.sha256(block.frames.tobytes() + told.tobytes()).hexdigest()


def dream(sim: Engine, world: World, actions: list[Condition]) -> list[str]:
    return [digest(sim.step([world], [condition])[0]) for condition in actions]


def test_the_cache_holds_what_recomputing_the_whole_history_gives():
    """Two dreams of the same world, apart from the first step on: they stay as close as fp32 rounds."""
    sim = Engine(model("float32"))
    world, reference = sim.open(start(3), seed=5), Uncached(sim, start(3), seed=5)
    for condition in conditions(CACHED_STEPS, seed=0):
        [block] = sim.step([world], [condition])
        torch.testing.assert_close(world.latents, reference.step(condition), atol=3e-4, rtol=1e-4)
        reference.variables.append(block.variables)
    recorded, features = reference.history()
    torch.testing.assert_close(world.head_state, sim.model.heads.summarise(features[:, -1])[0], atol=1e-4, rtol=1e-4)
    for layer, made in recorded.items():
        whole = [x[0].unflatten(0, (world.table.length, -1)) for x in made]
        for position, page in zip(world.table.positions, world.table.pages, strict=True):
            for kept, x in zip(sim.pool.range(layer, page, 1), whole, strict=True):
                torch.testing.assert_close(kept[0], x[position], atol=1e-3, rtol=1e-4)


def test_in_bf16_a_world_is_the_same_to_the_byte_alone_and_among_eight():
    alone, together = Engine(model("bfloat16")), Engine(model("bfloat16"), max_worlds=8)
    actions = [conditions(10, seed) for seed in range(8)]
    crowd = [together.open(start(seed), seed) for seed in range(8)]
    rows = [[digest(b) for b in together.step(crowd, step)] for step in zip(*actions, strict=True)]
    for seed in range(8):
        world = alone.open(start(seed), seed)
        assert dream(alone, world, actions[seed]) == [row[seed] for row in rows]
        alone.close(world)


def go_on(dtype: str, path: str) -> None:
    """Print the 64 steps that follow a snapshot; another process is started to run this."""
    sim = Engine(model(dtype))
    print("\n".join(dream(sim, sim.restore(path), conditions(64, seed=7))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_process_dreams_on_from_a_snapshot_to_the_bit(dtype, tmp_path):
    sim, path = Engine(model(dtype)), tmp_path / "world.safetensors"
    world = sim.open(start(1), seed=2)
    dream(sim, world, conditions(20, seed=6))
    sim.save(world, path)
    code = f"from tests.test_slow_shipped import go_on; go_on({dtype!r}, {str(path)!r})"
    theirs = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True
    )
    assert theirs.stdout.split() == dream(sim, world, conditions(64, seed=7))


def game(seed: int, num_steps: int) -> Iterator[tuple[np.ndarray, float, bool, dict]]:
    """Random steps of the shipped id, with a reset by hand after each end: observation, reward, over, info."""
    env = gym.make("inferix_env/DoomTakeCover-v0")
    env.action_space.seed(seed)
    obs, info = env.reset(seed=seed)
    yield obs, 0.0, False, info
    for _ in range(num_steps):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert obs in env.observation_space
        yield obs, reward, terminated or truncated, info
        if terminated or truncated:
            obs, info = env.reset()
            yield obs, 0.0, False, info
    env.close()


def bits(row: tuple[np.ndarray, float, bool, dict]) -> str:
    obs, reward, over, info = row
    told = repr((reward, over, info["variables"], info.get("end_probability")))
    return hashlib.sha256(obs.tobytes() + info["frames"].tobytes() + told.encode()).hexdigest()


def test_a_long_game_through_gymnasium_is_never_blank_and_repeats_itself():
    first: list[str] = []
    num_ends = 0
    for row in game(11, ENV_STEPS):
        obs, reward, over, info = row
        assert obs.std() > 1, "a blank frame"
        assert np.isfinite(reward)
        assert np.isfinite(list(info["variables"].values())).all()
        num_ends += over
        if len(first) < REPEATED:
            first.append(bits(row))
    assert num_ends > 0
    assert [bits(row) for row in islice(game(11, REPEATED), REPEATED)] == first
