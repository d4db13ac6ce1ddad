"""What only a GPU can show: the same worlds on CUDA as on the CPU. Run with `pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import Condition, Engine, KVPolicy, Start
from engine.loading import assemble
from engine.training.denoiser import DenoiserConfig, Sequences, denoiser_loss
from inferix_env.env import WorldSimEnv
from inferix_env.vector import WorldSimVectorEnv
from tests.sims import act, footage, identical, roll
from tests.worlds import TINY, make_modules

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def rollout(device: str, dtype: torch.dtype) -> list[np.ndarray]:
    torch.backends.cuda.matmul.allow_tf32 = False
    sim = Engine(assemble(TINY, make_modules(TINY), device, dtype))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    world = sim.open(Start(frames, np.eye(3, dtype=np.float32), np.full((3, 1), 50.0)), seed=1)
    return [sim.step([world], [Condition.of(np.eye(3, dtype=np.float32)[[a % 3]])])[0].frames for a in range(6)]


def test_cuda_dreams_what_the_cpu_dreams():
    for a, b in zip(rollout("cpu", torch.float32), rollout("cuda", torch.float32), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2


def test_bf16_on_cuda_stays_close_to_fp32():
    first = zip(rollout("cuda", torch.float32)[:2], rollout("cuda", torch.bfloat16)[:2], strict=True)
    assert all(np.abs(a.astype(int) - b).mean() < 4 for a, b in first)


def test_cuda_is_deterministic():
    first, second = (rollout("cuda", torch.bfloat16) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_env_runs_on_cuda(endless):
    env = WorldSimEnv(world=endless, device="cuda")
    env.reset(seed=0)
    obs, *_ = env.step(1)
    assert obs.shape == (32, 32, 3)


@pytest.mark.parametrize("policy", [KVPolicy(4), KVPolicy(3, sink=1, top_k=2, memory=6), KVPolicy(None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_world_is_the_same_to_the_bit_whoever_is_beside_it(policy, dtype):
    def dream(seeds):
        sim = Engine(assemble(TINY, make_modules(TINY), "cuda", dtype), policy=policy, max_worlds=len(seeds))
        worlds = [sim.open(footage(1 + seed % 5, seed), seed) for seed in seeds]
        return [sim.step(worlds, act(*[(t + seed) % 3 for seed in seeds])) for t in range(9)]

    together = dream([3, 8, 4, 11])
    for row, seed in enumerate([3, 8, 4, 11]):
        assert identical([blocks[0] for blocks in dream([seed])], [blocks[row] for blocks in together])


@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8"])
def test_offloaded_pages_save_memory_and_change_no_bit(kv_dtype):
    policy = KVPolicy(3, sink=1, top_k=2, memory=200)
    model = assemble(TINY, make_modules(TINY), "cuda", torch.bfloat16)
    rolls, taken = [], []
    for offload in (False, True):
        before = torch.cuda.memory_allocated()
        sim = Engine(model, policy=policy, kv_dtype=kv_dtype, offload=offload, paged=False)
        taken.append(torch.cuda.memory_allocated() - before)
        world = sim.open(footage(3), 0)
        rolls.append(roll(sim, world, 30))
        blob = sim.snapshot(world)
        future = roll(sim, world, 4)
        sim.close(world)
        assert identical(future, roll(sim, sim.restore(blob), 4))
    assert identical(*rolls)
    assert taken[1] < taken[0] / 5


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_pages_read_in_place_give_what_gathered_ones_give(kv_dtype):
    """Worlds of different ages through the paged kernel, against the same through gathering: bf16 rounding apart."""
    model = assemble(TINY, make_modules(TINY), "cuda", torch.bfloat16)
    made = []
    for paged in (True, False):
        sim = Engine(model, max_worlds=3, kv_dtype=kv_dtype, paged=paged)
        assert (sim.runner.kernel is not None) == paged
        worlds = [sim.open(footage(k), k) for k in (1, 3, 9)]
        sim.step(worlds, act(1, 2, 0))
        made.append(torch.stack([w.latents for w in worlds]))
    torch.testing.assert_close(made[0], made[1], atol=0.05, rtol=0.05)


def test_known_host_pages_come_back_on_a_side_stream():
    model = assemble(TINY, make_modules(TINY), "cuda", torch.bfloat16)
    policy = KVPolicy(2, sink=1, pages=(2, 4))
    rolls = []
    for offload in (False, True):
        sim = Engine(model, policy=policy, offload=offload, paged=False)
        rolls.append(roll(sim, sim.open(footage(8), 0), 12))
    assert identical(*rolls)


def test_a_vector_env_keeps_its_tensors_on_the_device(endless):
    env = WorldSimVectorEnv(3, world=endless, device="cuda", tensors=True)
    env.reset(seed=0)
    obs, rewards, *_ = env.step(env.action_space.sample())
    assert obs.is_cuda
    assert obs.shape == (3, 32, 32, 3)
    assert rewards.is_cuda


def test_training_on_cuda_gives_the_cpus_loss():
    """Same weights, same levels: the loss of many random sequences agrees within its sampling noise."""
    torch.manual_seed(0)
    actions = torch.eye(3)[torch.randint(0, 3, (64, 6))]
    latents = torch.randn(64, 6, *TINY.latent)
    rarity = torch.zeros_like(latents[:, :, :1])
    batch = {"latents": latents, "rarity": rarity, "actions": actions, "variables": torch.zeros(64, 6, 1)}
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        sequences = Sequences.of(batch, TINY, torch.device(device))
        denoiser = make_modules(TINY).denoiser.to(device)
        loss, _ = denoiser_loss(denoiser, sequences, DenoiserConfig(), np.random.default_rng(0), step_own=True)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
