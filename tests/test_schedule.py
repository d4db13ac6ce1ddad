"""Schedules, noise and rotary positions against closed forms."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from engine.noise import SeededNoise, normals, philox, uniforms
from engine.rope import axis_widths, rotate, rotations
from engine.schedule import euler, flow, levels, mix

PINNED_WORDS = [6649467637274347345, 1664830243804975061]
PINNED_NORMALS = [-0.177831, -0.226726, -0.792363, 1.757817]
PINNED_UNIFORM = 0.8607091707044412


def test_levels_even_and_shifted():
    assert levels(4, 1.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert levels(2, 3.0) == pytest.approx([1, 3 * 0.5 / (1 + 2 * 0.5), 0])


def test_euler_with_the_true_velocity_lands_on_the_clean_latent():
    """With v = e - x0 constant along the straight path, any number of steps is exact."""
    clean, noise = torch.randn(2, 5), torch.randn(2, 5)
    for num_steps in (1, 2, 7):
        x = noise
        for step in flow(num_steps, 2.0, 0.1):
            if step.update:
                torch.testing.assert_close(x, mix(clean, noise, step.level), atol=1e-5, rtol=1e-4)
                x = step.update(x, noise - clean)
        torch.testing.assert_close(x, clean, atol=1e-5, rtol=1e-4)


def test_a_block_ends_with_one_commit():
    passes = flow(3, 1.0, 0.1)
    assert [p.commit for p in passes] == [False, False, False, True]
    assert [p.level for p in passes] == pytest.approx([1, 2 / 3, 1 / 3, 0.1])
    assert euler(1.0, 0.5)(torch.tensor(2.0), torch.tensor(4.0)) == pytest.approx(0.0)


def test_noise_values_are_pinned():
    """A world's seed means the same world for ever: these values must never change."""
    assert philox(1, 2, 3, 2).tolist() == PINNED_WORDS
    assert normals(7, 5, 0, (4,)).tolist() == pytest.approx(PINNED_NORMALS, abs=1e-6)
    assert uniforms(7, 5, 1000, 1)[0] == pytest.approx(PINNED_UNIFORM, abs=1e-12)


def test_noise_does_not_depend_on_what_was_drawn_before():
    noise = SeededNoise(3)
    first = noise.latent(4, 1, (2, 3))
    noise.latent(9, 0, (5,))
    assert torch.equal(noise.latent(4, 1, (2, 3)), first)
    keys = [(3, 4, 1), (4, 4, 1), (3, 5, 1), (3, 4, 2), (3, -1, 1)]
    streams = {hashlib.sha256(normals(*key, (8,)).numpy().tobytes()).digest() for key in keys}
    assert len(streams) == len(keys)


def test_noise_is_standard_normal():
    x = normals(0, 0, 0, (200_001,)).double()
    assert abs(x.mean()) < 0.01
    assert x.std() == pytest.approx(1, abs=0.01)
    assert (x**4).mean() == pytest.approx(3, abs=0.1)
    assert len(x) == 200_001


def test_rotary_scores_depend_on_distance_only_even_a_million_blocks_on():
    q, k = torch.randn(1, 4, 1, 12), torch.randn(1, 4, 1, 12)

    def scores(at: int) -> torch.Tensor:
        a, b = (rotations(torch.tensor([[at + d]]), (2, 2), 12, 100.0) for d in (3, 0))
        return torch.einsum("bshd,bthd->bst", rotate(q, *a), rotate(k, *b))

    torch.testing.assert_close(scores(0), scores(1_000_000), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores(0), torch.einsum("bshd,bthd->bst", q, k), atol=1e-2)


def test_rotary_against_complex_numbers():
    x = torch.randn(1, 6, 2, 16, dtype=torch.float64)
    cos, sin = rotations(torch.tensor([[5]]), (2, 3), 16, 50.0)
    turned = rotate(x, cos.double(), sin.double())
    pairs = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(cos[..., :8].double(), sin[..., 8:].double())
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))
    assert sum(axis_widths(16)) == 16
    assert np.isclose(float(cos[0, 0, 0, 0]), np.cos(5.0))
