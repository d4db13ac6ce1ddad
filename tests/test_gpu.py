"""What only a GPU can show: the same worlds on CUDA as on the CPU. Run with `pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine import Condition, Engine, Start
from engine.loading import assemble
from engine.training.denoiser import DenoiserConfig, Sequences, denoiser_loss
from inferix_env.env import WorldSimEnv
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


def test_training_on_cuda_gives_the_cpus_loss():
    """Same weights, same levels: the loss of many random sequences agrees within its sampling noise."""
    torch.manual_seed(0)
    actions = torch.eye(3)[torch.randint(0, 3, (64, 6))]
    batch = {"latents": torch.randn(64, 6, *TINY.latent), "actions": actions, "variables": torch.zeros(64, 6, 1)}
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        sequences = Sequences.of(batch, TINY, torch.device(device))
        denoiser = make_modules(TINY).denoiser.to(device)
        loss, _ = denoiser_loss(denoiser, sequences, DenoiserConfig(), np.random.default_rng(0), step_own=True)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
