"""A probe: a small network that reads off two consecutive frames which action led from one to the other.

Of discrete actions it names the likeliest (`train_probe`, `guess`), of others it says their numbers (`train_reader`,
`read`).

Learned on real frames only. Knows torch and frames; knows nothing of worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class ProbeSize:
    """Attributes: passes over the pairs, pairs a step, highest learning rate."""

    epochs: int = 8
    batch: int = 64
    rate: float = 1.5e-3


class Probe(nn.Module):
    """Frames before and after, uint8 [B, H, W, 3] -> logits [B, n] over actions, or n numbers of one.

    Works at half the frames' size.
    """

    def __init__(self, n: int, frame: tuple[int, int]):
        super().__init__()
        cells = -(-frame[0] // 2 // 8) * -(-frame[1] // 2 // 8)
        self.layers = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(6, 24, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48 * cells, 64),
            nn.ReLU(),
            nn.Linear(64, n),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        now = after.float() - 128
        joined = torch.cat([after.float() - before.float(), now], dim=-1) / 64
        return self.layers(joined.permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Pairs:
    """Runs of frames and which rows of them are pairs: (run, t) is the frames t - 1 and t, led by `labels`' action.

    Labels are indices int64 [P], or encoded actions float32 [P, A].
    """

    runs: Sequence[np.ndarray]
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, picks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Frames before and after of some pairs."""
        before, after = (np.stack([self.runs[r][t - back] for r, t in self.rows[picks]]) for back in (1, 0))
        return torch.from_numpy(before).to(device), torch.from_numpy(after).to(device)


def train_probe(pairs: Pairs, n: int, size: ProbeSize, seed: int, device: torch.device) -> Probe:
    """Learn a probe from pairs of real frames; every class weighs the same, however often it occurs."""
    counts = np.maximum(np.bincount(pairs.labels, minlength=n), 1)
    weights = torch.tensor(len(pairs) / n / counts, dtype=torch.float32, device=device)
    return train(pairs, n, size, seed, device, lambda made, labels: F.cross_entropy(made, labels, weights))


def train_reader(pairs: Pairs, n: int, size: ProbeSize, seed: int, device: torch.device) -> Probe:
    """Learn a probe of `n` numbers from pairs of real frames; each weighs the same, however far it spreads."""
    spread = torch.from_numpy(pairs.labels.var(0) + 1e-6).float().to(device)
    return train(pairs, n, size, seed, device, lambda made, labels: ((made - labels).square() / spread).mean())


def train(
    pairs: Pairs, n: int, size: ProbeSize, seed: int, device: torch.device, loss: Callable[[Tensor, Tensor], Tensor]
) -> Probe:
    """Raises ValueError where there are no pairs."""
    if not len(pairs):
        raise ValueError("a probe learns from pairs of real frames, and there are none: play longer episodes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(Probe(n, pairs.runs[0].shape[1:3]).to(device), pairs, size, np.random.default_rng(seed), loss)


def fit(
    probe: Probe, pairs: Pairs, size: ProbeSize, rng: np.random.Generator, loss: Callable[[Tensor, Tensor], Tensor]
) -> Probe:
    device = next(probe.parameters()).device
    batches = max(1, len(pairs) // size.batch)
    optimiser = torch.optim.AdamW(probe.parameters(), size.rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, size.rate, total_steps=size.epochs * batches)
    with tqdm(total=size.epochs * batches, desc="probe", unit="batch", leave=False, disable=None) as bar:
        for _ in range(size.epochs):
            for picks in np.array_split(rng.permutation(len(pairs)), batches):
                labels = torch.from_numpy(pairs.labels[picks]).to(device)
                missed = loss(probe(*pairs.batch(picks, device)), labels)
                optimiser.zero_grad()
                missed.backward()
                optimiser.step()
                rates.step()
                bar.update()
    return probe.eval()


def guess(probe: Probe, pairs: Pairs, device: torch.device) -> np.ndarray:
    """The likeliest action of each pair, int64 [P]."""
    return read(probe, pairs, device).argmax(-1)


@torch.inference_mode()
def read(probe: Probe, pairs: Pairs, device: torch.device) -> np.ndarray:
    """What the probe makes of each pair, float32 [P, n]."""
    picks = np.arange(len(pairs))
    parts = [probe(*pairs.batch(picks[i : i + 128], device)).cpu() for i in range(0, len(picks), 128)]
    return torch.cat(parts).numpy()
