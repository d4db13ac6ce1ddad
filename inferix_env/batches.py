"""What a vector env is given, taken apart by world: seeds, reset masks, options, actions. Checked here, whole.

Knows shapes and Gymnasium's conventions; knows no worlds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from engine import ActionSpec, Condition, DictActions
from inferix_env.engines import Seats
from inferix_env.state import EpisodeState
from inferix_env.steering import condition_of


def autoreset_mode_of(value: AutoresetMode | str) -> AutoresetMode:
    """The mode, or the mode of this value.

    Raises:
        ValueError: there is none.
    """
    modes = [mode.value for mode in AutoresetMode]
    if not isinstance(value, AutoresetMode) and value not in modes:
        raise ValueError(f"autoreset_mode {value!r}: expected a gymnasium.vector.AutoresetMode, or one of {modes}")
    return AutoresetMode(value)


def seeds_of(seed: int | Sequence[int | None] | None, num: int) -> list[int | None]:
    """A seed for each world: seed + i, or those of a sequence.

    Raises:
        ValueError: the sequence is not of this length.
    """
    if seed is None:
        return [None] * num
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num)]
    if len(seed) != num:
        raise ValueError(f"{len(seed)} seeds: expected an integer, or one for each of the {num} worlds")
    return [None if s is None else int(s) for s in seed]


def chosen_seed(seed: Any, options: dict[str, Any]) -> Any:
    """The seed that reset is given, or that its options bring, which are left without it.

    Raises:
        ValueError: both are given.
    """
    other = options.pop("seed", None)
    if seed is not None and other is not None:
        raise ValueError(f"seed {seed} and options seed {other}: expected one of them")
    return seed if other is None else other


def worlds_of(mask: Any, num: int) -> list[int]:
    """The worlds that `options["reset_mask"]` marks; all where there is none.

    Raises:
        ValueError: it is no array of `num` booleans, at least one of them True.
    """
    if mask is None:
        return list(range(num))
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (num,) or not mask.any():
        raise ValueError(f"reset_mask {mask!r}: expected a NumPy array of {num} booleans, at least one of them True")
    return np.flatnonzero(mask).tolist()


def options_of(options: Mapping[str, Any], i: int, num: int) -> dict[str, Any]:
    """World i's options: a list or tuple under a name holds one for each world, anything else is for all.

    `None` in such a list leaves the option out. The actions that lead through footage are a list themselves: they are
    taken apart where `frames` is.

    Raises:
        ValueError: a list is not of this length.
    """
    several = {name for name, value in options.items() if isinstance(value, list | tuple)}
    if not isinstance(options.get("frames"), list | tuple):
        several -= {"actions"}
    for name in sorted(several):
        if len(options[name]) != num:
            raise ValueError(
                f"option {name!r} lists {len(options[name])} values: expected one for each of {num} worlds"
            )
    own = {name: value[i] if name in several else value for name, value in options.items()}
    return {name: value for name, value in own.items() if value is not None}


def rows_of(actions: Any, spec: ActionSpec, num: int) -> list[Any]:
    """Batched actions -> one for each world; what is in them is not looked at.

    Raises:
        ValueError: there is not one for each world.
    """
    if isinstance(spec, DictActions):
        names = [name for name, _ in spec.parts]
        if not isinstance(actions, Mapping) or set(actions) != set(names):
            given = sorted(actions) if isinstance(actions, Mapping) else repr(actions)
            raise ValueError(f"actions {given}: expected a mapping with the keys {names}, {num} rows each")
        parts = {name: rows_of(actions[name], part, num) for name, part in spec.parts}
        return [{name: rows[i] for name, rows in parts.items()} for i in range(num)]
    rows = list(actions.cpu().numpy() if isinstance(actions, torch.Tensor) else actions) if np.iterable(actions) else []
    if len(rows) != num or isinstance(actions, str):
        raise ValueError(f"actions {actions!r}: expected one for each of the {num} worlds")
    return rows


def conditions_of(
    rows: Sequence[Any], states: Sequence[EpisodeState], seats: Seats, moving: Sequence[int]
) -> list[Condition]:
    """The conditions of the worlds that are about to move; what the others are given is ignored.

    Raises:
        ValueError: an action does not fit; says whose.
    """
    conditions = []
    for i in moving:
        try:
            conditions.append(condition_of(rows[i], states[i], seats))
        except ValueError as error:
            raise ValueError(f"world {i}: {error}; no world has moved") from None
    return conditions


def check_indices(indices: Sequence[int], num: int) -> None:
    """Raise ValueError unless these are worlds, each named once."""
    if len(set(indices)) != len(indices) or not all(isinstance(i, int | np.integer) and 0 <= i < num for i in indices):
        raise ValueError(f"worlds {list(indices)}: expected integers from 0 to {num - 1}, each once")
