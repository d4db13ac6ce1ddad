"""Uncertainty: how far a model's second opinion of a finished block lies from what it made.

The block is noised again, with noise of its own, up to a middle level, and denoised from there in one Euler step,
with the history and the condition that it was made with. What noise decides, the two disagree about; what history and
action decide, they do not. (Ensembles of world models are used so, e.g. Plan2Explore, Sekar et al. 2020, eq. 3; here
the ensemble is one model under two draws.) Worlds are only read: nothing is committed, and the draws are no others'.

Legend: N worlds, F latent frames of a block, C h w latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.conditioning import Condition
from engine.engine import Engine
from engine.schedule import Pass, euler, mix
from engine.world import World

# The draw of a second opinion: no pass of a block has it, and no head (see noise.py).
AGAIN = 900


@contextmanager
def held(sim: Engine, worlds: Sequence[World]) -> Iterator[list[World]]:
    """Forks of worlds, as they stand now, for as long as the context lasts.

    Raises:
        PoolFull: the engine has no room for as many worlds again.
    """
    forks: list[World] = []
    try:
        for world in worlds:
            forks += sim.fork(world)
        yield forks
    finally:
        for fork in forks:
            sim.close(fork)


@torch.inference_mode()
def second_opinion(
    sim: Engine, before: Sequence[World], conditions: Sequence[Condition], latents: Tensor, level: float
) -> Tensor:
    """Blocks as the model makes them again from what they are under noise.

    Args:
        before: forks (see `held`) of the worlds as they stood before the block was made; to be closed afterwards.
        conditions: what the blocks were made under, one a world.
        latents: the blocks' clean latents, float32 [N, F, C, h, w].
        level: of the noise, in (0, 1].

    Returns:
        Clean latents, float32 [N, F, C, h, w]. A row does not depend on the rows beside it if the engine is
        deterministic.

    Raises:
        ValueError: the level is none, or the model is a published one, which denoises by another rule.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level {level}: expected a noise level above 0, up to 1")
    if sim.spec.published:
        raise ValueError("published models were distilled for their own noise levels: there is no second opinion")
    again: dict[int, Tensor] = {}
    for rows in alike(sim, before):
        worlds = [before[i] for i in rows]
        clean = torch.stack([latents[i] for i in rows])
        shown = mix(clean, sim.runner.noise(worlds, AGAIN, clean.shape[1:]), level)
        steer = joined(sim, worlds, [conditions[i] for i in rows])
        made = sim.runner.run(worlds, [Pass(level, euler(level, 0.0))], shown, steer)
        again.update(zip(rows, made, strict=True))
        for world in worlds:  # the block's keys were for this pass alone
            sim.pool.release(world.table.in_flight)
            world.table.in_flight = []
    return torch.stack([again[i] for i in range(len(before))])


def alike(sim: Engine, worlds: Sequence[World]) -> list[list[int]]:
    """Rows whose histories are padded to one length, and which run together."""
    groups: dict[int, list[int]] = {}
    for i, world in enumerate(worlds):
        groups.setdefault(sim.runner.span(world), []).append(i)
    return list(groups.values())


def joined(sim: Engine, worlds: list[World], conditions: Sequence[Condition]) -> Condition:
    """The conditions of all worlds, with their variables as they stand, repeated over the block's frames."""
    actions = torch.stack([condition.actions for condition in conditions])
    values = [torch.from_numpy(sim.spec.encode_variables(world.variables)) for world in worlds]
    return sim.runner.condition(worlds, actions, torch.stack(values)[:, None].expand(-1, sim.spec.block, -1))
