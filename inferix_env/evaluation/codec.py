"""The codec: how much of a real frame is left after encoding and decoding it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine import Engine
from inferix_env.evaluation import metrics
from inferix_env.evaluation.dreaming import reconstruct
from inferix_env.evaluation.episodes import Episode, RealGame, draw
from inferix_env.evaluation.findings import Check, Findings, Picture
from inferix_env.evaluation.policies import sticky, strafe, uniform
from inferix_env.evaluation.sheets import sheet

TITLE = "Codec"


@dataclass(frozen=True)
class Size:
    """Attributes: real episodes and their longest; frames drawn from them; pictures shown."""

    episodes: int = 60
    limit: int = 400
    frames: int = 2_000
    shown: int = 12


QUICK = Size(episodes=6, limit=60, frames=40, shown=12)


def collect(game: RealGame, sides: tuple[int, int], first_seed: int, size: Size) -> list[Episode]:
    """Episodes in equal parts under uniform, sticky and strafing actions."""
    n = game.spec.actions.width
    seeds = range(first_seed, first_seed + size.episodes)
    return list(game.play([uniform(n), sticky(n), strafe(n, sides)], seeds, size.limit, TITLE))


def measure(engine: Engine, episodes: list[Episode], rng: np.random.Generator, size: Size) -> Findings:
    """Compare real frames with their reconstructions."""
    rows = [(i, t) for i, e in enumerate(episodes) for t in range(len(e.frames))]
    real = np.stack([episodes[i].frames[t] for i, t in draw(rows, size.frames, rng, "frames")])
    made = reconstruct(engine.model, real)
    numbers = compare(real, made)
    checks = [
        Check("PSNR", numbers["psnr"], low=33, unit="dB"),
        Check("sharpness over reality's", numbers["sharpness"], low=0.7),
        Check("fire pixels, recall", numbers["fire_recall"], low=0.9),
        Check("fire pixels, precision", numbers["fire_precision"], low=0.9),
    ]
    method = f"""{size.frames:,} frames drawn from {size.episodes} real episodes (a third each under uniform, sticky
and strafing actions), encoded and decoded. PSNR is that of the squared error pooled over all of them. Sharpness is
the mean absolute Laplacian of the reconstructions over that of the real frames. A pixel is fire where R > 190, G >
160 and B < 170; recall is the share of real fire pixels that are fire in the reconstruction, precision the share of
reconstructed ones that are fire in reality."""
    caption = "Real frames above their reconstructions: late ones with fire, monsters with it."
    pictures = {"codec": Picture(show(real, made, size.shown), caption)}
    return Findings(TITLE, method, checks, numbers, [], pictures)


def compare(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """The numbers of frames uint8 [N, H, W, 3] and their reconstructions."""
    fire, made_fire = metrics.fire_mask(real), metrics.fire_mask(made)
    return {
        "frames": len(real),
        "psnr": metrics.psnr(real, made),
        "sharpness": float(metrics.sharpness(made).mean() / metrics.sharpness(real).mean()),
        "fire_recall": metrics.recall(fire, made_fire),
        "fire_precision": metrics.recall(made_fire, fire),
        "fire_pixels": int(fire.sum()),
    }


def show(real: np.ndarray, made: np.ndarray, count: int) -> np.ndarray:
    """`count` frames evenly spread over those with fire, least fire first, over two double rows."""
    order = np.argsort(metrics.fire_pixels(real), kind="stable")
    begin = int((metrics.fire_pixels(real) == 0).sum())
    begin = min(begin, len(real) - count)
    picked = order[np.linspace(begin, len(real) - 1, count).astype(int)]
    halves = np.array_split(picked[: count // 2 * 2], 2)
    rows = [(label, frames[half]) for half in halves for label, frames in (("real", real), ("codec", made))]
    return sheet(rows, [""] * len(halves[0]), width=192, pairs=True)
