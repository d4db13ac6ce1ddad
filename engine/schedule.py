"""The passes of a block: noise levels, update rule, which pass writes the cache. Pure functions.

Flow matching (Lipman et al., 2023) in the rectified form: x(t) = (1 - t) x0 + t e, and the denoiser predicts
v = e - x0. A block is a list of passes; the engine's one loop runs them and knows none of these formulas. Our own
models take Euler steps (`flow`); distilled ones of the Wan2.1 family form x0 and mix fresh noise in (`renoise`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from engine.published import Rollout

# (what the denoiser was shown, its prediction) -> latent
Update = Callable[[Tensor, Tensor], Tensor]
# (clean latent, noise) -> what the denoiser is shown
Enter = Callable[[Tensor, Tensor], Tensor]


# A Condition (see conditioning.py).
Told = TypeVar("Told", bound=Any)


@dataclass(frozen=True)
class Pass:
    """One run of the denoiser over the blocks in flight.

    Attributes:
        level: the noise level t that the denoiser is told, in the units it was trained with; of each block in
            flight, oldest first, where there are several.
        update: the latent that its prediction of what it was shown makes; None leaves the latent as it is.
        enter: mixes fresh noise into what the denoiser is shown (not into the latent); None shows the latent.
        commit: this pass's K/V of the oldest block become history.
        reach: blocks that each block in flight sees, itself among them; None for all that the policy shows.
        size: of the step, told to models that were distilled for several.
    """

    level: float | tuple[float, ...]
    update: Update | None = None
    enter: Enter | None = None
    commit: bool = False
    reach: tuple[int | None, ...] = (None,)
    size: float | None = None

    def tell(self, condition: Told) -> Told:
        """The condition with what the pass tells of itself, where several blocks are in flight."""
        if not isinstance(self.level, tuple):
            return condition
        return replace(condition, step_size=self.size, levels=self.level)

    def times(self, frames: int) -> Tensor:
        """What the denoiser is told of each latent frame in flight, float32 [frames]."""
        levels = torch.tensor(self.level if isinstance(self.level, tuple) else (self.level,))
        return levels.repeat_interleave(frames // len(levels))


@dataclass(frozen=True)
class Leg:
    """Passes in a row over the same blocks; only the last of them may commit.

    Attributes:
        enters: a block of noise joins those in flight before the first of them.
    """

    passes: tuple[Pass, ...]
    enters: bool = False


def mix(clean: Tensor, noise: Tensor, level: float | Tensor) -> Tensor:
    """x(t) = (1 - t) x0 + t e."""
    return (1 - level) * clean + level * noise


def levels(num_steps: int, shift: float) -> list[float]:
    """num_steps + 1 levels from 1 to 0, warped by t' = s t / (1 + (s - 1) t) (Esser et al., 2024, eq. 23)."""
    even = [1 - i / num_steps for i in range(num_steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def euler(start: float, stop: float) -> Update:
    """Integrate dx/dt = v from level `start` down to `stop`."""
    return lambda latent, velocity: latent + (stop - start) * velocity


def commit(context_noise: float) -> Pass:
    """The pass that writes the cache: the finished block, slightly re-noised as in training."""
    return Pass(context_noise, enter=lambda clean, noise: mix(clean, noise, context_noise), commit=True)


def flow(num_steps: int, shift: float, context_noise: float) -> list[Pass]:
    """Few-step Euler denoising of a block from pure noise, then its commit."""
    t = levels(num_steps, shift)
    return [*(Pass(a, euler(a, b)) for a, b in pairwise(t)), commit(context_noise)]


def shifted(rollout: Rollout) -> Tensor:
    """The noise levels sigma of all training steps, falling, float32 [training_steps]."""
    even = torch.linspace(1, 0, rollout.training_steps + 1)[:-1]
    return rollout.shift * even / (1 + (rollout.shift - 1) * even)


def timesteps(rollout: Rollout) -> list[float]:
    """What the denoiser is told at each step: configured steps, or where the warped table has them."""
    if not rollout.warp:
        return [float(k) for k in rollout.steps]
    total = rollout.training_steps
    table = torch.cat([shifted(rollout) * total, torch.zeros(1)])
    return [float(table[total - k]) for k in rollout.steps]


def sigma_at(timestep: float, rollout: Rollout) -> float:
    """The noise level of the training step nearest to a timestep."""
    sigmas = shifted(rollout)
    nearest = (sigmas * rollout.training_steps - timestep).abs().argmin()
    return float(sigmas[nearest])


def to_clean(sigma: float, dtype: torch.dtype) -> Update:
    """x0 = x - sigma v, formed in float64 and rounded to `dtype` as published; kept in float32."""
    return lambda shown, flow: (shown.double() - sigma * flow.double()).to(dtype).float()


def mix_rounded(sigma: float, dtype: torch.dtype) -> Enter:
    """x(t) of clean latents and noise in float32, each rounded to `dtype`."""
    keep = float(1 - torch.tensor(sigma))
    return lambda clean, noise: (keep * clean + sigma * noise.to(dtype).float()).to(dtype).float()


def renoise(rollout: Rollout, dtype: torch.dtype = torch.float32) -> list[Pass]:
    """Few-step sampling of a distilled model (Self Forcing, Huang et al. 2025): at each step form x0, then mix fresh
    noise in for the next; at last a pass over the clean block, which writes the cache.

    Args:
        dtype: the precision that the published code keeps latents in.
    """
    told = timesteps(rollout)
    sigmas = [sigma_at(t, rollout) for t in told]
    enters = [None, *(mix_rounded(s, dtype) for s in sigmas[1:])]
    steps = [Pass(t, to_clean(s, dtype), enter) for t, s, enter in zip(told, sigmas, enters, strict=True)]
    return [*steps, Pass(rollout.context, commit=True)]
