"""Train the heads on the frozen trunk's features of real histories: rewards, changes of variables, ends.

Ends and hits are rare, so half of the rows are drawn near them, and each row's loss is divided by how much more
often it was drawn: the heads stay calibrated. Legend as in denoiser.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.heads import Heads
from engine.spec import WorldSpec
from engine.training.denoiser import DenoiserConfig, Sequences, context_levels
from engine.training.fit import FitConfig, Metrics, fit
from engine.training.latents import Episodes
from engine.training.precision import autocast


@dataclass(frozen=True)
class HeadsConfig:
    """Attributes: frames of history before the row that is read; share of draws that end on a rare row."""

    frames: int = 13
    rare: float = 0.5
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(steps=1_500, batch=24, lr=1e-3, ema=0.99, warmup=50, weight_decay=0.05)
    )


class Rows:
    """Rows to learn from, with their targets, and the odds they are drawn with."""

    def __init__(self, episodes: Episodes, spec: WorldSpec, config: HeadsConfig):
        self.episodes, self.spec = episodes, spec
        rows = np.arange(len(episodes.latents))
        self.rows = rows[(rows <= episodes.last) & (rows > episodes.first)]
        self.deltas = change_indices(episodes, spec)
        rare = (episodes.ends_next > 0) | (self.deltas != unchanged(spec)).any(1)
        is_rare = rare[self.rows]
        share = config.rare if is_rare.any() else 0.0
        self.odds = np.where(is_rare, share / max(is_rare.sum(), 1), 0) + (1 - share) / len(self.rows)
        self.cumulative = np.cumsum(self.odds)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [count] and their weights: uniform odds over drawn odds."""
        picks = np.searchsorted(self.cumulative, rng.random(count) * self.cumulative[-1]).clip(max=len(self.rows) - 1)
        return self.rows[picks], (1 / len(self.rows) / self.odds[picks]).astype(np.float32)


def unchanged(spec: WorldSpec) -> np.ndarray:
    """The index of "no change" of every variable, [V]."""
    return np.array([int(np.argmin(np.abs(v.deltas))) for v in spec.variables], np.int64)


def change_indices(episodes: Episodes, spec: WorldSpec) -> np.ndarray:
    """For each row, which of its variables' listed changes led to it (the nearest one), int64 [T, V]."""
    before = np.maximum(np.arange(len(episodes.latents)) - 1, episodes.first)
    moved = episodes.variables - episodes.variables[before]
    columns = [
        np.abs(moved[:, i, None] - np.asarray(v.deltas, np.float32)).argmin(1) for i, v in enumerate(spec.variables)
    ]
    return np.stack(columns, 1) if columns else np.zeros((len(moved), 0), np.int64)


def features_of(trunk: nn.Module, episodes: Episodes, rows: np.ndarray, frames: int, spec, device) -> Tensor:
    """The trunk's features [B, S, D] of rows after their histories of up to `frames` - 1 rows.

    Rows near an episode's start have shorter histories: they are grouped by length, so nothing is padded.
    """
    lengths = np.minimum(rows - episodes.first[rows] + 1, frames)
    out: list[Tensor | None] = [None] * len(rows)
    for length in np.unique(lengths):
        members = np.nonzero(lengths == length)[0]
        batch = Sequences.of(episodes.sequences(rows[members] - length + 1, int(length), spec), spec, device)
        levels = context_levels(len(members), int(length), spec, DenoiserConfig()).to(device)
        with torch.no_grad(), autocast(device):
            _, features = batch.context(trunk, batch.latents, levels)
        for i, member in enumerate(members):
            out[member] = features[i, -1]
    return torch.stack([x for x in out if x is not None])


def next_actions(episodes: Episodes, rows: np.ndarray) -> np.ndarray:
    """The action taken after each row, [B, A]."""
    return episodes.actions[np.minimum(rows + 1, len(episodes.actions) - 1)]


def heads_loss(heads: Heads, features: Tensor, episodes: Episodes, data: Rows, rows: np.ndarray, weights: np.ndarray):
    """Cross-entropy of changes and of the end, squared error of rewards (the last one only where an end came)."""
    device, spec = features.device, data.spec
    state = heads.summarise(features)
    reward, changes = heads.now(state)
    w = torch.from_numpy(weights).to(device)
    spread = heads.reward_scale[1]
    target = torch.from_numpy(episodes.rewards[rows]).to(device)
    total = (w * ((reward - target) / spread).square()).mean()
    for i, logits in enumerate(changes):
        labels = torch.from_numpy(data.deltas[rows, i]).to(device)
        total = total + (w * F.cross_entropy(logits, labels, reduction="none")).mean()
    variables = torch.from_numpy(spec.encode_variables(episodes.variables[rows])).to(device)
    actions = torch.from_numpy(next_actions(episodes, rows)).to(device)
    logit, last = heads.next(state, variables, actions)
    ends = torch.from_numpy(episodes.ends_next[rows]).to(device)
    total = total + (w * F.binary_cross_entropy_with_logits(logit, ends, reduction="none")).mean()
    after = np.minimum(rows + 1, len(episodes.rewards) - 1)
    final = torch.from_numpy(episodes.rewards[after]).to(device)
    total = total + (ends * ((last - final) / spread).square()).sum() / ends.sum().clamp(min=1)
    return total, logit, ends, w


def train_heads(
    spec: WorldSpec,
    config: HeadsConfig,
    trunk: nn.Module,
    train: Episodes,
    held_out: Episodes,
    folder: Path,
    device: torch.device,
    start: Heads | None = None,
) -> Heads:
    """Train (or resume) the heads; returns their averaged weights."""
    torch.manual_seed(config.fit.seed)
    heads = (start or Heads(spec)).to(device)
    spread = max(float(train.rewards.std()), 1e-3)
    heads.reward_scale.copy_(torch.tensor([float(train.rewards.mean()), spread]))
    data, test = Rows(train, spec, config), Rows(held_out, spec, config)

    def loss(module: Heads, rng: np.random.Generator, step: int) -> tuple[Tensor, Metrics]:
        rows, weights = data.draw(rng, config.fit.batch)
        features = features_of(trunk, train, rows, config.frames, spec, device).float()
        return heads_loss(module, features, train, data, rows, weights)[0], {}

    def validate(average: Heads, step: int) -> Metrics:
        rows, weights = test.draw(np.random.default_rng(1), 400)
        with torch.no_grad():
            chunks = [features_of(trunk, held_out, r, config.frames, spec, device).float() for r in np.split(rows, 8)]
            total, logit, ends, w = heads_loss(average, torch.cat(chunks), held_out, test, rows, weights)
        return {
            "heads": float(total),
            "end_precision": average_precision(logit, ends, w),
            "base_rate": float((ends * w).sum() / w.sum()),
        }

    return fit("heads", heads, loss, validate, config.fit, folder)


def average_precision(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Area under the precision-recall curve of weighted rows."""
    order = scores.argsort(descending=True)
    hits, weight = (labels * weights)[order], weights[order]
    precision = hits.cumsum(0) / weight.cumsum(0)
    return float((precision * hits).sum() / hits.sum().clamp(min=1e-9))
