"""One training loop for every stage: optimisers, schedule, EMA, checkpoints, log, progress bar.

A stage is a module, a loss and a validation; batches follow from (seed, step), so a run that was killed goes on
from its checkpoint exactly as if it had not been. Knows nothing of codecs, denoisers or data.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

Metrics = dict[str, float]
M = TypeVar("M", bound=nn.Module)


class Companion(Protocol):
    """What learns beside the module, in steps of its own within the loss: a discriminator and its optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class FitConfig:
    """How a stage is optimised.

    Attributes:
        steps: optimiser steps in all; a finished run with more steps goes on.
        batch: samples a step.
        lr: peak learning rate; linear warm-up, flat, then linear decay over the last `decay` of the steps.
        ema: decay of the averaged weights that are validated and exported.
        muon: orthogonalised updates (Muon, Jordan et al. 2024) for the hidden matrices, AdamW for the rest.
        every: seconds between checkpoints.
        validate_every: steps between validations and contact sheets.
    """

    steps: int = 10_000
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.25
    weight_decay: float = 0.01
    ema: float = 0.995
    clip: float = 1.0
    muon: bool = False
    every: float = 120.0
    validate_every: int = 500
    seed: int = 0


def learning_rate(step: int, config: FitConfig) -> float:
    """Warm-up, stable, decay; factors of the peak."""
    left = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup), max(left, 0.0))


def make_optimizers(module: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    hidden = {
        id(p) for name, p in module.named_parameters() if config.muon and p.ndim == 2 and ".layers." in f".{name}"
    }
    muon = [p for p in module.parameters() if id(p) in hidden and p.requires_grad]
    rest = [p for p in module.parameters() if id(p) not in hidden and p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    ]
    if muon:
        kind = torch.optim.Muon
        optimizers.append(kind(muon, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * module, buffers copied."""
    for slow, fast in zip(average.parameters(), module.parameters(), strict=True):
        slow.data.lerp_(fast.data, 1 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)


def save(path: Path, state: dict) -> None:
    """torch.save under a temporary name, then rename: a kill leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def fit(
    name: str,
    module: M,
    loss: Callable[[M, np.random.Generator, int], tuple[Tensor, Metrics]],
    validate: Callable[[M, int], Metrics],
    config: FitConfig,
    folder: Path,
    companion: Companion | None = None,
) -> M:
    """Train `module` and return its averaged copy, in eval mode.

    Args:
        name: the stage; the checkpoint is `folder/name.pt`, the log `folder/name.jsonl`.
        loss: (module, rng of this step, step) -> scalar loss and numbers to log.
        validate: (averaged module, step) -> numbers to log; may draw sheets.
        companion: what else the loss trains; kept in the same checkpoint.
    """
    average = copy.deepcopy(module).eval().requires_grad_(False)
    optimizers = make_optimizers(module, config)
    path, step = folder / f"{name}.pt", 0
    if path.exists():
        step = restore(path, module, average, optimizers, companion)
    saved = time.monotonic()
    with tqdm(total=config.steps, initial=step, desc=name, unit="it", dynamic_ncols=True) as bar:
        while step < config.steps:
            metrics = train_step(module, loss, optimizers, config, step)
            step += 1
            update_average(average, module, min(config.ema, (step + 1) / (step + 10)))
            bar.update()
            bar.set_postfix({k: f"{v:.3g}" for k, v in metrics.items()}, refresh=False)
            due = step % config.validate_every == 0 or step == config.steps
            if due or time.monotonic() - saved > config.every:
                save(path, snapshot(module, average, optimizers, step, companion))
                saved = time.monotonic()
            if due:
                report(folder / f"{name}.jsonl", bar, {"step": step, **metrics, **validate(average, step)})
    return average


def train_step(module, loss, optimizers, config: FitConfig, step: int) -> Metrics:
    rng = np.random.default_rng((config.seed, step))
    torch.manual_seed(int(rng.integers(2**62)))
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
    module.train()
    value, metrics = loss(module, rng, step)
    value.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"gradients are not finite at step {step}: lower --lr, then resume from the checkpoint"
        )
    for optimizer in optimizers:
        optimizer.step()
    return {"loss": float(value.detach()), **metrics}


def snapshot(
    module: nn.Module, average: nn.Module, optimizers: list, step: int, companion: Companion | None = None
) -> dict:
    state = {
        "step": step,
        "module": module.state_dict(),
        "average": average.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    return state if companion is None else {**state, "companion": companion.state_dict()}


def restore(
    path: Path, module: nn.Module, average: nn.Module, optimizers: list, companion: Companion | None = None
) -> int:
    """Load a checkpoint into everything that trains; return its step.

    Raises:
        ValueError: the checkpoint is of another model, or of one with or without a companion.
    """
    state = torch.load(path, weights_only=True, map_location="cpu")
    if ("companion" in state) != (companion is not None):
        had = "a" if "companion" in state else "no"
        raise ValueError(
            f"{path} was trained with {had} companion (a discriminator): choose another --out, or its settings"
        )
    try:
        module.load_state_dict(state["module"])
        if companion is not None:
            companion.load_state_dict(state["companion"])
    except RuntimeError as error:
        raise ValueError(
            f"{path} was trained with another model: choose another --out, or its settings ({error})"
        ) from None
    average.load_state_dict(state["average"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return int(state["step"])


def report(path: Path, bar: tqdm, row: Metrics) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    bar.write("  ".join(f"{k} {v:.4g}" for k, v in row.items()))
