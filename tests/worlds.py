"""A tiny world with random weights: the same classes at a size that runs in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.actions import DiscreteActions
from engine.loading import Parts, build, save_world
from engine.spec import CodecSpec, DenoiserSpec, KVPolicy, VariableSpec, WorldSpec

TINY = WorldSpec(
    name="tiny",
    frame=(32, 32),
    fps=10.0,
    actions=DiscreteActions(3, ("none", "left", "right")),
    variables=(VariableSpec("energy", 0.0, 100.0, (-20.0, -10.0, 0.0)),),
    codec=CodecSpec(channels=4, widths=(8, 8, 16), depth=1),
    denoiser=DenoiserSpec(width=32, layers=2, heads=2),
    kv=KVPolicy(window=4),
)


def make_modules(spec: WorldSpec, seed: int = 0) -> Parts:
    """Random weights in which nothing is zero, so that every part matters to the result."""
    torch.manual_seed(seed)
    modules = build(spec)
    for parameter in modules.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return modules


def make_starts(spec: WorldSpec, count: int = 4) -> dict[str, np.ndarray]:
    """Openings of one block: random frames, no actions, variables at their upper bounds."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, spec.block, *spec.frame, 3), dtype=np.uint8)
    variables = np.tile(np.float32([v.high for v in spec.variables]), (count, spec.block, 1))
    actions = np.zeros((count, spec.block, spec.actions.width), np.float32)
    return {"frames": frames, "actions": actions, "variables": variables}


def make_world(folder: Path, seed: int = 0, end_bias: float = 0.0, **changes) -> Path:
    """Write a world folder; `changes` replace fields of `TINY`, `end_bias` is added to the logit of an end."""
    spec = replace(TINY, **changes)
    keys = {"left": 1, "right": 2, "a": 1, "d": 2}
    modules = make_modules(spec, seed)
    modules.heads.end[2].bias.data[0] += end_bias
    save_world(Path(folder), {"title": "Tiny", "keys": keys, "spec": spec.to_dict()}, modules)
    np.savez_compressed(Path(folder) / "starts.npz", **make_starts(spec))
    return Path(folder)
