"""Dream along recorded episodes, and keep what heads see there: features of dreamed frames, for heads to learn from.

A dreamed frame's features are not a real one's, and heads that know real ones alone say much the same of every dream.
Here worlds begin with a few real latents and are dreamed on under the actions that were really taken; what heads are to
say of a dreamed frame is what really happened at its row. So they learn how far a dream is to be believed, too.

Knows the engine, episodes and files; does not know heads.

Legend: R rows, S tokens, D width, N worlds, K changes a variable can make.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from tqdm import tqdm

from engine.conditioning import Condition
from engine.engine import Engine
from engine.hardware import default_dtype
from engine.model import States, WorldModel
from engine.models.heads import Silent
from engine.packing import packed_where_served
from engine.spec import WorldSpec
from engine.training.latents import Episodes, read_metadata
from engine.world import Start, World

# Worlds dreamed at once, and kept in one file.
GROUP = 48


@dataclass(frozen=True)
class DreamsConfig:
    """What is dreamed along.

    Attributes:
        count: dreams; 0 for none.
        given: real frames that each begins with, as starts have.
        steps: dreamed in each.
        events: share of them in which something rare is ahead: a named variable changes, or the episode ends.
        openings: share of them that begin with an episode.
        seed: of what is drawn.
    """

    count: int = 960
    given: int = 4
    steps: int = 16
    events: float = 0.45
    openings: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Dreams:
    """R dreamed rows.

    Attributes:
        features: of the trunk, float16 [R, S, D].
        rows: of the data, int64 [R].
        weights: how much less often each was drawn than evenly, float64 [R].
    """

    features: Tensor
    rows: np.ndarray
    weights: np.ndarray


class Watching(Silent):
    """In place of heads: keeps the features that they would be shown. Nothing ends and no variable moves."""

    def __init__(self, spec: WorldSpec):
        self.spec, self.hidden = spec, spec.stream.tokens * spec.denoiser.width

    def summarise(self, features: Tensor) -> Tensor:
        return features.flatten(1)

    def now(self, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        still = [torch.tensor(v.deltas, device=state.device).abs() for v in self.spec.variables]
        logits = [torch.where(x == x.min(), 0.0, -torch.inf).expand(len(state), -1) for x in still]
        return torch.zeros(len(state)), logits


class Unseen:
    """In place of a codec: decodes nothing, for nobody looks."""

    frames_per_latent = 1

    def encode(self, frames: Tensor, states: States = None) -> tuple[Tensor, States]:
        raise ValueError("dreams along recorded episodes begin with latents")

    def decode(self, latents: Tensor, states: States = None) -> tuple[Tensor, States]:
        return torch.zeros(*latents.shape[:2], 1, 1, 3, dtype=torch.uint8), states


def dreams_of(
    spec: WorldSpec,
    config: DreamsConfig,
    trunk: nn.Module,
    episodes: Episodes,
    rare: np.ndarray,
    path: Path,
    device: torch.device,
) -> Dreams | None:
    """Dreamed rows of a split, dreamed or read back from files that begin with `path`; None of a `count` of 0.

    Args:
        rare: bool, for every row of the data, whether something rare comes with it or ends the episode after it.
    """
    if not config.count:
        return None
    starts, weights = drawn(config, episodes, rare)
    made_by = {"dreams": digest(trunk, spec, config, len(episodes.latents))}
    groups = range(0, len(starts), GROUP)
    sim, parts = None, []
    for at in tqdm(groups, desc=f"dream {path.name}", unit="group"):
        cached = path.with_name(f"{path.name}-{at // GROUP:03d}.safetensors")
        if not cached.exists() or read_metadata(cached) != made_by:
            sim = sim or Engine(watched(spec, trunk, device), max_worlds=GROUP, deterministic=False)
            made = dreamed(sim, config, episodes, starts[at : at + GROUP], config.seed + at)
            save_file(made, cached.with_suffix(".tmp"), metadata=made_by)
            os.replace(cached.with_suffix(".tmp"), cached)
        part = load_file(cached)
        which = part["which"].numpy()
        parts.append((part["features"], starts[at + which] + part["age"].numpy(), weights[at + which]))
    features, rows, shares = zip(*parts, strict=True)
    return Dreams(torch.cat(features), np.concatenate(rows), np.concatenate(shares))


def drawn(config: DreamsConfig, episodes: Episodes, rare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First rows of dreams, and their weights: even odds over the odds that they were drawn with.

    Raises:
        ValueError: no episode is longer than what dreams are given.
    """
    rows = np.arange(len(episodes.latents))
    last = np.minimum(rows + config.given + config.steps - 1, episodes.last)
    can = rows + config.given <= episodes.last
    if not can.any():
        raise ValueError(f"no episode has {config.given + 1} frames to dream along: lower --heads.dreams.given")
    seen = np.concatenate([[0], np.cumsum(rare)])
    ahead = can & (seen[last + 1] > seen[np.minimum(rows + config.given, last + 1)])
    opening = can & (rows == episodes.first)
    odds, left = np.zeros(len(rows)), 1.0
    for share, among in ((config.events, ahead), (config.openings, opening)):
        if among.any():
            odds += share * among / among.sum()
            left -= share
    odds += left * can / can.sum()
    picks = np.random.default_rng(config.seed).choice(len(rows), config.count, p=odds / odds.sum())
    return picks, (can / can.sum())[picks] / odds[picks]


def watched(spec: WorldSpec, trunk: nn.Module, device: torch.device) -> WorldModel:
    """A model whose worlds keep the features of their last block."""
    dtype = default_dtype(device)
    own: Any = copy.deepcopy(trunk).to(device, dtype).eval().requires_grad_(False)
    denoiser = packed_where_served(own, device, dtype)
    return WorldModel(spec, denoiser, Unseen(), Watching(spec), device, dtype)


def dreamed(sim: Engine, config: DreamsConfig, episodes: Episodes, starts: np.ndarray, seed: int) -> dict[str, Tensor]:
    """`features` of every dreamed row that there really was, `which` of the starts it came of, its `age` from there."""
    spec, block = sim.spec, sim.spec.block
    worlds = [sim.open(start_of(episodes, s, config.given), seed + i) for i, s in enumerate(starts.tolist())]
    features, which, ages = [], [], []
    for age in range(config.given, config.given + config.steps, block):
        rows = np.minimum(starts[:, None] + np.arange(age, age + block), episodes.last[starts][:, None])
        for world, row in zip(worlds, rows[:, 0], strict=True):
            world.variables = episodes.variables[row - 1].astype(np.float64)
        sim.step(worlds, [Condition.of(episodes.actions[row]) for row in rows])
        there = np.flatnonzero(starts + age + block - 1 <= episodes.last[starts])
        features += [kept(worlds[i]) for i in there]
        which += there.tolist()
        ages += [age + block - 1] * len(there)
        if not len(there):
            break
    for world in worlds:
        sim.close(world)
    shape = -1, spec.stream.tokens, spec.denoiser.width
    return {"features": torch.stack(features).view(shape), "which": torch.tensor(which), "age": torch.tensor(ages)}


def start_of(episodes: Episodes, row: int, given: int) -> Start:
    """The real rows that a dream begins with."""
    rows = slice(row, row + given)
    actions = episodes.actions[rows].copy()
    actions[0] = 0
    none = np.zeros((0, 0, 0, 3), np.uint8)
    return Start(none, actions, episodes.variables[rows], latents=episodes.latents[rows].float())


def kept(world: World) -> Tensor:
    assert world.head_state is not None
    return world.head_state.to("cpu", torch.float16)


def digest(trunk: nn.Module, spec: WorldSpec, config: DreamsConfig, rows: int) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of what dreams follow from."""
    weights = save({name: x.cpu().contiguous() for name, x in trunk.state_dict().items()})
    told = json.dumps([spec.to_dict(), asdict(config), rows], sort_keys=True)
    return hashlib.sha256(weights + told.encode()).hexdigest()[:16]
