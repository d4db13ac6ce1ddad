"""The passes of a block: noise levels, update rule, which pass writes the cache. Pure functions.

Flow matching (Lipman et al., 2023) in the rectified form: x(t) = (1 - t) x0 + t e, and the denoiser predicts
v = e - x0. A block is a list of passes; the engine's one loop runs them and knows none of these formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

# (latent, prediction) -> latent
Update = Callable[[Tensor, Tensor], Tensor]
# (clean latent, noise) -> what the denoiser is shown
Enter = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pass:
    """One run of the denoiser over a block.

    Attributes:
        level: the noise level t that the denoiser is told.
        update: how its prediction changes the latent; None leaves the latent as it is.
        enter: mixes fresh noise into what the denoiser is shown (not into the latent); None shows the latent.
        commit: this pass's K/V become history.
    """

    level: float
    update: Update | None = None
    enter: Enter | None = None
    commit: bool = False


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
