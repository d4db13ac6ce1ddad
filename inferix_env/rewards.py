"""Rewards of the user's own, in place of the world's learned head, and ends of the user's own beside the world's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# (all frames of the step uint8 [T, H, W, 3], the action as it was given, its info) -> (reward, whether the episode
# ends with it), or the reward alone, which leaves the end to the world.
RewardFn = Callable[[np.ndarray, Any, dict[str, Any]], tuple[float, bool] | float]


def judged(reward_fn: RewardFn, frames: Any, action: Any, info: dict[str, Any]) -> tuple[float, bool]:
    """What a reward function says of a step: (reward, terminated).

    Raises:
        ValueError: the reward is no finite number, or `terminated` no boolean.
    """
    value = reward_fn(frames, action, info)
    given, ends = value if isinstance(value, tuple) and len(value) == 2 else (value, False)
    expected = "expected (reward, terminated), or a reward alone: a finite number and a boolean"
    try:
        reward, terminated = float(given), bool(ends)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"reward_fn {reward_fn!r} returned {value!r}: {expected}") from None
    if not np.isfinite(reward) or ends != terminated:
        raise ValueError(f"reward_fn {reward_fn!r} returned {value!r}: {expected}")
    return reward, terminated
