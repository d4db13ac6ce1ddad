"""Rewards of the user's own, in place of the world's learned head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# (all frames of the step uint8 [T, H, W, 3], its info) -> reward
RewardFn = Callable[[np.ndarray, dict[str, Any]], float]


def checked(value: Any, source: RewardFn) -> float:
    """The reward as a float.

    Raises:
        ValueError: it is not a finite number.
    """
    reward = float(value)
    if not np.isfinite(reward):
        raise ValueError(f"reward_fn {source!r} returned {value!r}: expected a finite number")
    return reward
