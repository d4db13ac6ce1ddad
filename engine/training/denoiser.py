"""Train the denoiser: flow matching on every latent frame of a sequence, each after its real history.

Two copies of a sequence go through the same weights. The context copy carries the noise of a commit pass and writes
the K/V that a cache would hold; in the target copy every latent frame has an independent noise level and sees itself
and the context of the frames before it (diffusion forcing, Chen et al. 2024, in the teacher-forced form): just what
inference does, block by block. In some steps part of the context is first replaced by the model's own one-step
guesses, so that it learns to continue, and to mend, what it dreams itself.

Legend: N sequences, F latent frames, C h w latent, A action encoding, V variables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.codecs.autoencoder import AutoEncoder, to_frames
from engine.conditioning import Condition
from engine.kv.view import CausalView
from engine.models.action_dit import ActionDiT
from engine.schedule import flow, mix
from engine.schedule import levels as schedule_levels
from engine.spec import WorldSpec
from engine.training.fit import FitConfig, Metrics, fit
from engine.training.latents import Episodes
from engine.training.precision import autocast
from engine.training.sheets import write_sheet

# The rarity (see rarity.py) from which on a latent counts as rare: some six pixels of a fireball.
FULLY_RARE = 0.1


@dataclass(frozen=True)
class DenoiserConfig:
    """How sequences are drawn, noised and weighed.

    Attributes:
        frames: latent frames of a training sequence.
        sampled: share of targets at the noise levels that the sampler visits; the others are anywhere, warped by
            `target_shift` towards high noise.
        max_context_noise: half of the context frames carry the spec's context noise, the others up to this.
        own_context: share of steps whose context is partly the model's own guesses, after `own_after` steps.
        motion: weight of latents around which much moved, against those where all stood still.
        rarity: weight of latents around which a rare colour was seen, against the others.
        insist: further weight of latents under a rare colour, against inventing one.
        busy: share of sequences drawn in proportion to their motion; the others are drawn evenly.
    """

    frames: int = 16
    sampled: float = 0.6
    target_shift: float = 2.0
    max_context_noise: float = 0.3
    own_context: float = 0.3
    own_after: int = 1_000
    motion: float = 1.0
    rarity: float = 8.0
    insist: float = 4.0
    busy: float = 0.5
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(steps=20_000, batch=8, lr=2e-3, muon=True, ema=0.998, weight_decay=0.01)
    )


def latent_weights(latents: Tensor, rarity: Tensor, config: DenoiserConfig) -> Tensor:
    """Weights [N, F, 1, h, w] of mean one, large near where a latent changed, or was rare, just before.

    These cannot see the frame that they weigh: a model that is charged more for missing a fireball than for inventing
    one sees fireballs everywhere. A few-step sampler errs the other way, towards the mean of what may come, in which
    what is rare fades from frame to frame. `insist` sets one against the other.
    """
    change = (latents[:, 1:] - latents[:, :-1]).square().mean(2, keepdim=True)
    moved = (change / change.mean().clamp(min=1e-6)).clamp(max=10)
    rare = (rarity / FULLY_RARE).clamp(max=1)
    weights = torch.ones_like(rare)
    weights[:, 1:] += config.rarity * around(rare[:, :-1], 5)
    weights[:, 2:] += config.motion * around(moved[:, :-1], 3)
    weights = weights * (1 + config.insist * rare)
    return weights / weights.mean()


def around(x: Tensor, size: int) -> Tensor:
    """The largest value [N, F, 1, h, w] of each latent's neighbourhood."""
    return F.max_pool2d(x.flatten(0, 1), size, stride=1, padding=size // 2).unflatten(0, x.shape[:2])


def context_levels(n: int, f: int, spec: WorldSpec, config: DenoiserConfig) -> Tensor:
    """Noise levels [N, F] of the context copy: the commit pass's own, or anything up to the maximum."""
    anything = torch.rand(n, f) * config.max_context_noise
    return torch.where(torch.rand(n, f) < 0.5, torch.full((n, f), spec.context_noise), anything)


def target_levels(n: int, f: int, spec: WorldSpec, config: DenoiserConfig) -> Tensor:
    """Independent noise levels [N, F] in (0, 1]: the sampler's own, or any, warped towards 1."""
    anything = torch.rand(n, f)
    anything = config.target_shift * anything / (1 + (config.target_shift - 1) * anything)
    visited = torch.tensor(schedule_levels(spec.num_steps, spec.shift)[:-1])
    own = visited[torch.randint(len(visited), (n, f))]
    return torch.where(torch.rand(n, f) < config.sampled, own, anything)


def spread(levels: Tensor) -> Tensor:
    return levels[:, :, None, None, None]


@dataclass(frozen=True)
class Sequences:
    """One batch on its device, with its two runs through the denoiser."""

    latents: Tensor
    rarity: Tensor
    condition: Condition
    spec: WorldSpec

    @classmethod
    def of(cls, batch: dict[str, Tensor], spec: WorldSpec, device: torch.device) -> Sequences:
        condition = Condition(batch["actions"], batch["variables"]).to(device)
        return cls(batch["latents"].to(device), batch["rarity"].to(device), condition, spec)

    @property
    def positions(self) -> Tensor:
        n, f = self.latents.shape[:2]
        return torch.arange(f, device=self.latents.device).expand(n, f)

    def upto(self, frames: int, latents: Tensor) -> Sequences:
        """The first `frames` latent frames, with other latents."""
        condition = Condition(self.condition.actions[:, :frames], self.condition.variables[:, :frames])
        return Sequences(latents[:, :frames], self.rarity[:, :frames], condition, self.spec)

    def view(self, context: CausalView | None = None) -> CausalView:
        """A view of these frames. A CPU skips what chunks cannot see; a GPU would rather have one kernel."""
        chunk = 2 if self.latents.device.type == "cpu" else self.latents.shape[1]
        return CausalView(self.spec.kv, self.spec.stream.tokens, context, self.spec.block, chunk)

    def context(self, denoiser: nn.Module, latents: Tensor, levels: Tensor) -> tuple[CausalView, Tensor]:
        """Run the context copy; return its view, with K/V recorded, and its features [N, F, S, D]."""
        view = self.view()
        shown = mix(latents, torch.randn_like(latents), spread(levels))
        _, features = denoiser(shown, levels, self.positions, self.condition, view)
        return view, features

    def target(self, denoiser: nn.Module, context: CausalView, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Run the target copy; return its prediction and the velocity it should have been."""
        noise = torch.randn_like(self.latents)
        shown = mix(self.latents, noise, spread(levels))
        prediction, _ = denoiser(shown, levels, self.positions, self.condition, self.view(context))
        return prediction.float(), noise - self.latents

    @torch.no_grad()
    def guesses(self, denoiser: nn.Module, context: CausalView) -> Tensor:
        """What the model makes of each frame in a single step from its context, [N, F, C, h, w]."""
        n, f = self.latents.shape[:2]
        levels = (0.6 + 0.4 * torch.rand(n, f)).to(self.latents.device)
        noise = torch.randn_like(self.latents)
        shown = mix(self.latents, noise, spread(levels))
        prediction, _ = denoiser(shown, levels, self.positions, self.condition, self.view(context))
        return shown - spread(levels) * prediction.float()


def denoiser_loss(
    denoiser: nn.Module, batch: Sequences, config: DenoiserConfig, rng: np.random.Generator, step_own: bool
) -> tuple[Tensor, Metrics]:
    """Weighted mean squared error of the velocity over frames 1 .. F-1 (the first has no history)."""
    n, f = batch.latents.shape[:2]
    device = batch.latents.device
    seen = batch.latents
    with autocast(device):
        if step_own:
            with torch.no_grad():
                view, _ = batch.context(denoiser, seen, context_levels(n, f, batch.spec, config).to(device))
                guesses = batch.guesses(denoiser, view)
            replaced = torch.rand(n, f, device=device) < float(rng.uniform(0.2, 0.8))
            replaced[:, 0] = False
            seen = torch.where(spread(replaced), guesses, seen)
        view, _ = batch.context(denoiser, seen, context_levels(n, f, batch.spec, config).to(device))
        prediction, velocity = batch.target(denoiser, view, target_levels(n, f, batch.spec, config).to(device))
    weights = latent_weights(batch.latents, batch.rarity, config)
    error = (prediction - velocity).square()
    return (weights * error)[:, 1:].mean(), {"mse": float(error[:, 1:].detach().mean())}


@torch.no_grad()
def dream(denoiser: nn.Module, batch: Sequences, given: int, seed: int) -> Tensor:
    """Replace frames `given` .. F-1 by the model's own under the sequence's actions; history recomputed, no cache."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _dream(denoiser, batch, given)


def _dream(denoiser: nn.Module, batch: Sequences, given: int) -> Tensor:
    made = batch.latents.clone()
    passes = flow(batch.spec.num_steps, batch.spec.shift, batch.spec.context_noise)
    for now in range(given, made.shape[1]):
        past = batch.upto(now + 1, made)
        levels = torch.full(past.latents.shape[:2], batch.spec.context_noise, device=made.device)
        view, _ = past.context(denoiser, past.latents, levels)
        x = torch.randn_like(made[:, now])
        for step in passes:
            if step.update is None:
                continue
            shown = past.latents.clone()
            shown[:, now] = x
            times = levels.clone()
            times[:, now] = step.times(1).item()
            prediction, _ = denoiser(shown, times, past.positions, past.condition, past.view(view))
            x = step.update(x, prediction[:, now].float())
        made[:, now] = x
    return made


def train_denoiser(
    spec: WorldSpec,
    config: DenoiserConfig,
    train: Episodes,
    held_out: Episodes,
    codec: AutoEncoder,
    folder: Path,
    device: torch.device,
    start: ActionDiT | None = None,
) -> ActionDiT:
    """Train (or resume) the denoiser; returns its averaged weights."""
    torch.manual_seed(config.fit.seed)
    denoiser = (start or ActionDiT(spec)).to(device)
    starts = train.sequence_starts(config.frames)
    busy = np.cumsum(train.motion)[starts + config.frames - 1] - np.cumsum(train.motion)[starts]
    odds = np.cumsum((1 - config.busy) / len(starts) + config.busy * busy / busy.sum())
    count = min(8, config.fit.batch)
    held_starts = held_out.sequence_starts(config.frames)
    chosen = held_starts[np.linspace(0, len(held_starts) - 1, count).astype(int)]
    test = Sequences.of(held_out.sequences(chosen, config.frames, spec), spec, device)

    def loss(module: ActionDiT, rng: np.random.Generator, step: int) -> tuple[Tensor, Metrics]:
        picks = np.searchsorted(odds, rng.random(config.fit.batch) * odds[-1]).clip(max=len(starts) - 1)
        batch = Sequences.of(train.sequences(starts[picks], config.frames, spec), spec, device)
        own = step >= config.own_after and rng.random() < config.own_context
        return denoiser_loss(module, batch, config, rng, own)

    def validate(average: ActionDiT, step: int) -> Metrics:
        return dream_report(average, test, codec, folder / f"dream-{step:06d}.png")

    return fit("denoiser", denoiser, loss, validate, config.fit, folder)


def dream_report(denoiser: nn.Module, test: Sequences, codec: AutoEncoder, sheet: Path) -> Metrics:
    """Mean squared latent error of dreams against repeating the last given frame, at growing horizons."""
    frames = test.latents.shape[1]
    given = min(4, frames // 2)
    with autocast(test.latents.device):
        made = dream(denoiser, test, given, seed=0)
    rows: Metrics = {}
    for horizon in sorted({1, min(4, frames - given), frames - given}):
        now = given + horizon - 1
        error = (made[:, now] - test.latents[:, now]).square().mean()
        still = (test.latents[:, given - 1] - test.latents[:, now]).square().mean()
        rows[f"gain_{horizon}"] = float(10 * torch.log10(still / error))
    pictures = torch.stack([test.latents[:3], made[:3]], 1).flatten(0, 1)  # real above dreamed, three times
    shown = to_frames(codec.reconstruct(pictures.flatten(0, 1)))
    write_sheet(sheet, shown.cpu().numpy(), columns=frames, scale=1)
    return rows
