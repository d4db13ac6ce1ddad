"""Train the AutoEncoder on frames whose small things matter.

Squared error washes away what is small, and PSNR does not notice. So the absolute error and its Laplacian are
weighted, per pixel, by motion (what changed since the frame before), by local detail, and by how rare the pixel's
colour is in the data: a fireball is all three. All of these leave blurred what cannot be known to the pixel: a
texture term asks for its contrast, and a discriminator can object to how it is made up. Knows data, fit and the
codec; does not know the denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.codecs.autoencoder import AutoEncoder, to_frames, to_signal
from engine.training.data import Shards
from engine.training.discriminator import Adversary, balance
from engine.training.fit import FitConfig, Metrics, fit
from engine.training.precision import autocast
from engine.training.rarity import ColourRarity
from engine.training.sheets import write_sheet


@dataclass(frozen=True)
class CodecConfig:
    """The codec's sizes and what its loss weighs (see the module's docstring).

    Attributes:
        freeze_encoder: train the decoder alone: latents, and a denoiser of them, stay what they are.
        texture: weight of matching local contrast wherever it lies, which errors of single pixels do not reward.
        adversarial: the discriminator's gradient as a share of the other terms' at the decoder's last layer; 0 is
            none, and no discriminator is made.
        adversarial_after: steps for which the discriminator learns and the decoder does not hear it yet.
        matching: weight of feature matching within the adversarial term.
    """

    channels: int = 16
    widths: tuple[int, int, int] = (48, 64, 128)
    depth: int = 2
    latent_noise: float = 0.05
    motion: float = 8.0
    detail: float = 2.0
    rarity: float = 4.0
    laplacian: float = 1.0
    squared: float = 2.0
    freeze_encoder: bool = False
    texture: float = 0.0
    adversarial: float = 0.0
    adversarial_after: int = 100
    matching: float = 0.0
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=6_000, batch=16, lr=6e-4, ema=0.99))

    def __post_init__(self) -> None:
        for name in ("texture", "adversarial", "adversarial_after", "matching"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"codec.{name} {getattr(self, name)}: expected a finite number of at least 0")


LAPLACE = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]) / 4


def laplacian(x: Tensor) -> Tensor:
    """Per-channel Laplacian of [B, C, H, W], edges replicated."""
    kernel = LAPLACE.to(x).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


def pixel_weights(now: Tensor, before: Tensor, rarity: Tensor, config: CodecConfig) -> Tensor:
    """Weights [B, 1, H, W] from two signals [B, 3, H, W] and the colour rarity, of mean about one."""
    motion = (now - before).abs().mean(1, keepdim=True) / 2
    detail = laplacian(now).abs().mean(1, keepdim=True) * 4
    weights = (
        1
        + config.motion * spread(motion)
        + config.detail * spread(detail).clamp(max=1)
        + config.rarity * spread(rarity)
    )
    return weights / weights.mean()


def spread(x: Tensor) -> Tensor:
    """Let a small thing's weight reach its rim: the maximum of each 3x3."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def sample_pairs(
    shards: Shards, rows: np.ndarray, rng: np.random.Generator, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and the frames before them, uint8 [batch, H, W, 3], from rows that have one before them."""
    chosen = rng.choice(rows, batch)
    pairs = np.stack([shards.frames(int(t) - 1, int(t) + 1) for t in chosen])
    return pairs[:, 1], pairs[:, 0]


def usable_rows(shards: Shards) -> np.ndarray:
    """Rows whose picture is real and is not an episode's first."""
    good = shards.column("valid").astype(bool)
    good[shards.starts[:-1]] = False
    return np.nonzero(good)[0]


def train_codec(
    config: CodecConfig, data: Path, folder: Path, device: torch.device, start: AutoEncoder | None = None
) -> AutoEncoder:
    """Train (or resume) the codec; returns its averaged weights, latents standardised on the data."""
    shards, held_out = Shards(data, "train"), Shards(data, "validation")
    rows, held_rows = usable_rows(shards), usable_rows(held_out)
    rng = np.random.default_rng(config.fit.seed)
    rarity = ColourRarity.of(shards).to(device)
    test = sample_pairs(held_out, held_rows, rng, 64)
    torch.manual_seed(config.fit.seed)
    codec = start or AutoEncoder(config.channels, config.widths, config.depth)
    codec.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    codec.encoder.requires_grad_(not config.freeze_encoder)
    adversary = Adversary(device, matching=config.matching) if config.adversarial else None

    def loss(module: AutoEncoder, rng: np.random.Generator, step: int) -> tuple[Tensor, Metrics]:
        frames, before = (torch.from_numpy(x).to(device) for x in sample_pairs(shards, rows, rng, config.fit.batch))
        share = config.adversarial if step >= config.adversarial_after else 0.0
        return codec_loss(module, frames, before, rarity, config, adversary, share)

    def validate(average: AutoEncoder, step: int) -> Metrics:
        return codec_report(average, torch.from_numpy(test[0]).to(device), folder / f"codec-{step:06d}.png")

    return fit("codec", codec, loss, validate, config.fit, folder, adversary)


def codec_loss(
    codec: AutoEncoder,
    frames: Tensor,
    before: Tensor,
    rarity: ColourRarity,
    config: CodecConfig,
    adversary: Adversary | None = None,
    share: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """The weighted loss and the plain squared error; an adversary learns from the same frames.

    Args:
        share: the length of the adversary's gradient against the weighted loss's; 0 leaves it out of the loss.
    """
    now, past = to_signal(frames, torch.float32), to_signal(before, torch.float32)
    out = noisy_reconstruction(codec, now, config)
    total = pixel_loss(out, now, past, rarity, config)
    metrics = {"mse": float((out.detach() - now).square().mean())}
    if adversary is not None:
        metrics["discriminator"] = adversary.learn(now, out)
        if share:
            term = adversary.term(now, out)
            total = total + share * balance(total, term, last_weight(codec)) * term
    return total, metrics


def noisy_reconstruction(codec: AutoEncoder, now: Tensor, config: CodecConfig) -> Tensor:
    """Signal [B, 3, H, W] -> the same through the codec, its latents moved by a little noise."""
    with autocast(now.device):
        z = codec.encoder(now).float()
        if not config.freeze_encoder:
            track_statistics(codec, z)
        z = z + config.latent_noise * codec.std[:, None, None] * torch.randn_like(z)
        return codec.decoder(z).float()


def pixel_loss(out: Tensor, now: Tensor, past: Tensor, rarity: ColourRarity, config: CodecConfig) -> Tensor:
    """Weighted errors of `out` and of its Laplacian. A colour is rare where it is, and where it was made up."""
    error = out - now
    rare = torch.maximum(rarity(to_frames(now)), rarity(to_frames(out.detach())))
    weights = pixel_weights(now, past, rare, config)
    absolute = (weights * error.abs()).mean()
    edges = (weights * laplacian(error).abs()).mean()
    squared = (weights * error.square()).mean()
    total = absolute + config.laplacian * edges + config.squared * squared
    return total + config.texture * texture_distance(out, now) if config.texture else total


def texture_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute distance of the log contrast of two signals [B, 3, H, W], at full, half and quarter size.

    A pixel that cannot be known is best guessed flat; that a floor is grainy can be known. The contrast of a place is
    the mean |Laplacian| of its 5x5, the floor of 0.01 about one grey level.
    It does not see of what kind the contrast is: a regular pattern, such as every second column, serves it too.
    """
    distances = []
    for size in (1, 2, 4):
        contrast = (laplacian(F.avg_pool2d(x, size)).abs().mean(1, keepdim=True) for x in (a, b))
        logs = [torch.log(F.avg_pool2d(x, 5, stride=1, padding=2) + 0.01) for x in contrast]
        distances.append((logs[0] - logs[1]).abs().mean())
    return torch.stack(distances).mean()


def last_weight(codec: AutoEncoder) -> Tensor:
    """The weight of the decoder's last convolution: where gradients of two losses are compared."""
    return next(layer.weight for layer in reversed(codec.decoder.layers) if isinstance(layer, nn.Conv2d))


@torch.no_grad()
def track_statistics(codec: AutoEncoder, z: Tensor) -> None:
    """Keep running averages of the latents' mean and spread: what `encode` and `decode` standardise by."""
    codec.mean.lerp_(z.mean((0, 2, 3)), 0.01)
    codec.std.lerp_(z.std((0, 2, 3)), 0.01)


@torch.no_grad()
def codec_report(codec: AutoEncoder, frames: Tensor, sheet: Path | None) -> Metrics:
    """PSNR, sharpness, and recall and precision of bright pixels on frames uint8 [B, H, W, 3]."""
    latents, _ = codec.encode(frames[:, None])
    out = to_frames(codec.reconstruct(latents[:, 0]))
    if sheet:
        write_sheet(sheet, torch.cat([frames[:16], out[:16]]).cpu().numpy(), columns=8)
    real, made = frames.float(), out.float()
    mse = (real - made).square().mean()
    sharp = laplacian(made.permute(0, 3, 1, 2)).abs().mean() / laplacian(real.permute(0, 3, 1, 2)).abs().mean()
    bright, seen = (bright_pixels(x) for x in (frames, out))
    both = (bright & seen).sum()
    return {
        "psnr": float(10 * torch.log10(255**2 / mse)),
        "sharpness": float(sharp),
        "bright_recall": float(both / bright.sum().clamp(min=1)),
        "bright_precision": float(both / seen.sum().clamp(min=1)),
    }


def bright_pixels(frames: Tensor) -> Tensor:
    """The glow of fire in Doom's palette, a stand-in for small bright things: R>190, G>160, B<170."""
    return (frames[..., 0] > 190) & (frames[..., 1] > 160) & (frames[..., 2] < 170)
