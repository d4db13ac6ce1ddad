"""Train the heads on the frozen trunk's features of real histories: rewards, changes of variables, ends.

Ends and hits are rare, so half of the rows are drawn near them, and each row's loss is divided by how much more
often it was drawn: the heads stay calibrated. So that they are calibrated in dreams, a share of the rows is dreamed
(see dreamed.py). Legend as in denoiser.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.heads import Heads
from engine.spec import WorldSpec
from engine.training.denoiser import DenoiserConfig, Sequences, context_levels
from engine.training.dreamed import Dreams, DreamsConfig, dreams_of
from engine.training.fit import FitConfig, Metrics, fit
from engine.training.latents import Episodes
from engine.training.precision import autocast


@dataclass(frozen=True)
class HeadsConfig:
    """How rows are drawn.

    Attributes:
        frames: of history up to the row that is read, where it is real.
        rare: share of draws that end on a rare row.
        dreamed: share of draws whose row is dreamed, if there are any.
        dreams: that they come of; held-out ones are an eighth as many.
    """

    frames: int = 13
    rare: float = 0.5
    dreamed: float = 0.7
    dreams: DreamsConfig = field(default_factory=DreamsConfig)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(steps=1_500, batch=24, lr=1e-3, ema=0.99, warmup=50, weight_decay=0.05)
    )


class Odds:
    """Draws of some things, a share of them rare ones.

    Args:
        natural: how often each should come, of sum one.
        rare: which ones are.
    """

    def __init__(self, natural: np.ndarray, rare: np.ndarray, share: float):
        share = share if rare.any() else 0.0
        among = natural * rare
        self.natural, self.odds = natural, share * among / max(among.sum(), 1e-12) + (1 - share) * natural
        self.cumulative = np.cumsum(self.odds)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Which ones [count], and their weights: natural odds over drawn odds."""
        last = len(self.odds) - 1
        picks = np.searchsorted(self.cumulative, rng.random(count) * self.cumulative[-1]).clip(max=last)
        return picks, (self.natural[picks] / self.odds[picks]).astype(np.float32)


class Rows:
    """Rows to learn from, with their targets, and the odds they are drawn with."""

    def __init__(self, episodes: Episodes, spec: WorldSpec, config: HeadsConfig):
        self.episodes, self.spec = episodes, spec
        rows = np.arange(len(episodes.latents))
        self.rows = rows[(rows <= episodes.last) & (rows > episodes.first)]
        self.deltas = change_indices(episodes, spec)
        self.rare = (episodes.ends_next > 0) | (self.deltas != unchanged(spec)).any(1)
        self.last_spread = spread_of(episodes.rewards[rows_after(np.flatnonzero(episodes.ends_next), episodes)])
        self.odds = Odds(np.full(len(self.rows), 1 / len(self.rows)), self.rare[self.rows], config.rare)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [count] and their weights."""
        picks, weights = self.odds.draw(rng, count)
        return self.rows[picks], weights


class Batches:
    """Real rows of a split beside dreamed ones, with the features of both."""

    def __init__(self, rows: Rows, dreams: Dreams | None, trunk: nn.Module, config: HeadsConfig, device: torch.device):
        self.rows, self.dreams, self.trunk, self.config, self.device = rows, dreams, trunk, config, device
        if dreams is not None:
            natural = dreams.weights / dreams.weights.sum()
            self.odds = Odds(natural, rows.rare[dreams.rows], config.rare)

    def real(self, rng: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Features [B, S, D] of real rows, the rows, and their weights."""
        rows, weights = self.rows.draw(rng, count)
        given = self.rows.episodes, rows, self.config.frames, self.rows.spec, self.device
        return features_of(self.trunk, *given).float(), rows, weights

    def dreamt(self, rng: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """The same of dreamed ones."""
        assert self.dreams is not None
        picks, weights = self.odds.draw(rng, count)
        return self.dreams.features[torch.from_numpy(picks)].to(self.device).float(), self.dreams.rows[picks], weights

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Both, in their shares."""
        dreamt = round(count * self.config.dreamed) if self.dreams is not None else 0
        parts = [draw(rng, n) for draw, n in ((self.real, count - dreamt), (self.dreamt, dreamt)) if n]
        features, rows, weights = zip(*parts, strict=True)
        return torch.cat(features), np.concatenate(rows), np.concatenate(weights)


def spread_of(values: np.ndarray) -> float:
    """Standard deviation, for losses to be divided by: of too few values or of equal ones, at least something."""
    return max(float(values.std()) if len(values) else 0.0, 1e-3)


def rows_after(rows: np.ndarray, episodes: Episodes) -> np.ndarray:
    """The rows after these."""
    return np.minimum(rows + 1, len(episodes.rewards) - 1)


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
    return episodes.actions[rows_after(rows, episodes)]


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
    final = torch.from_numpy(episodes.rewards[rows_after(rows, episodes)]).to(device)
    errors = ((last - final) / max(data.last_spread, float(spread))).square()
    total = total + (ends * errors).sum() / ends.sum().clamp(min=1)
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
    heads.reward_scale.copy_(torch.tensor([float(train.rewards.mean()), spread_of(train.rewards)]))
    data = batches_of(spec, config, config.dreams, trunk, train, folder / "dreams-train", device)
    fewer = replace(config.dreams, count=-(-config.dreams.count // 8))
    test = batches_of(spec, config, fewer, trunk, held_out, folder / "dreams-validation", device)

    def loss(module: Heads, rng: np.random.Generator, step: int) -> tuple[Tensor, Metrics]:
        features, rows, weights = data.draw(rng, config.fit.batch)
        return heads_loss(module, features, train, data.rows, rows, weights)[0], {}

    def validate(average: Heads, step: int) -> Metrics:
        rng = np.random.default_rng(1)
        with torch.no_grad():
            found = report(average, test.rows, [test.real(rng, 50) for _ in range(8)])
            if test.dreams is not None:
                dreamt = report(average, test.rows, [test.dreamt(rng, 100) for _ in range(16)])
                found |= {f"dreamed_{name}": value for name, value in dreamt.items()}
        return found

    return fit("heads", heads, loss, validate, config.fit, folder)


def batches_of(
    spec: WorldSpec,
    config: HeadsConfig,
    dreams: DreamsConfig,
    trunk: nn.Module,
    episodes: Episodes,
    path: Path,
    device: torch.device,
) -> Batches:
    """What heads learn from, or are tried on."""
    rows = Rows(episodes, spec, config)
    return Batches(rows, dreams_of(spec, dreams, trunk, episodes, rows.rare, path, device), trunk, config, device)


def report(heads: Heads, data: Rows, parts: list[tuple[Tensor, np.ndarray, np.ndarray]]) -> Metrics:
    """Loss, and how well ends are foretold: average precision, base rate, and the mean of what was foretold."""
    features, rows, weights = zip(*parts, strict=True)
    total, logit, ends, w = heads_loss(
        heads, torch.cat(features), data.episodes, data, np.concatenate(rows), np.concatenate(weights)
    )
    return {
        "heads": float(total),
        "end_precision": average_precision(logit, ends, w),
        "base_rate": float((ends * w).sum() / w.sum()),
        "foretold": float((logit.sigmoid() * w).sum() / w.sum()),
    }


def average_precision(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Area under the precision-recall curve of weighted rows."""
    order = scores.argsort(descending=True)
    hits, weight = (labels * weights)[order], weights[order]
    precision = hits.cumsum(0) / weight.cumsum(0)
    return float((precision * hits).sum() / hits.sum().clamp(min=1e-9))
