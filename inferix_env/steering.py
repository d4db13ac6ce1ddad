"""From an action to what steers a world's next step: rows of encoded actions, and a prompt that is new.

Knows episodes and an env's seats; steps nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine import Block, Condition, TextActions, World, WorldSpec
from inferix_env.actions import encoded_rows
from inferix_env.engines import Seats
from inferix_env.state import EpisodeState


def condition_of(action: Any, state: EpisodeState, seats: Seats) -> Condition:
    """What steers the next step of an episode.

    A prompt that is empty, or that holds already, leaves the world as it is.

    Raises:
        ValueError: the action does not fit the world.
    """
    spec = seats.engine.spec
    count = spec.frames_at(state.world.table.length)
    rows = encoded_rows(spec.actions, action, count, spec.frames_at(spec.block_at(0)) > 1)
    new = isinstance(spec.actions, TextActions) and action not in ("", state.prompt)
    return Condition.of(rows, prompt=seats.prompt(action) if new else None)


def prompt_after(action: Any, state: EpisodeState) -> str | None:
    """The prompt that holds once a step has taken an action."""
    return state.prompt if state.prompt is None or not action else str(action)


def first_blocks(worlds: list[World], seats: Seats) -> list[Block]:
    """The first block of worlds that have just begun, in which nothing is done."""
    return seats.engine.step(worlds, [idle(seats.engine.spec, w) for w in worlds]) if worlds else []


def idle(spec: WorldSpec, world: World) -> Condition:
    return Condition.of(np.zeros((spec.frames_at(world.table.length), spec.actions.width), np.float32))
