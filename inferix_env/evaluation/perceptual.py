"""Perceptual distances by networks, as an extra: LPIPS of frames, Fréchet video distance of clips.

LPIPS (Zhang et al., 2018) by the package lpips. Fréchet video distance (Unterthiner et al., 2018) between the features
of real and dreamed clips, of a network that is named: a folder or hub id of a VideoMAE (as Ge et al., 2024, who find
it the less partial judge), or a TorchScript file of the I3D that most published numbers use. Packages are imported
when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inferix_env.evaluation.closeness import Frames, Pairwise
from inferix_env.evaluation.measures import Measure, measure_of
from inferix_env.evaluation.stretches import Stretch

CLIP = 16  # frames of a clip
I3D_SIDE = 224
Features = Callable[[np.ndarray], np.ndarray]
"""Clips uint8 [N, CLIP, H, W, 3] -> features float64 [N, D]."""


def need(module: str, purpose: str) -> Any:
    """A package of the extra `metrics`.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs the package {module}: pip install 'inferix-env[metrics]' ({error})"
        ) from None


def lpips_distance(device: torch.device) -> Pairwise:
    """LPIPS of pairs of frames, by AlexNet: 0 the same, higher is further.

    Raises:
        ValueError: the package lpips, or the weights it fetches, cannot be had.
    """
    package = need("lpips", "--lpips")
    try:
        network = package.LPIPS(net="alex", verbose=False).to(device).eval()
    except OSError as error:
        raise ValueError(
            f"--lpips: its weights cannot be had ({error}): load them once where there is a network"
        ) from None

    @torch.inference_mode()
    def distance(real: np.ndarray, made: np.ndarray) -> np.ndarray:
        pairs = zip(real, made, strict=True)
        return np.array([float(network(*(as_input(x, device) for x in pair))) for pair in pairs])

    return distance


def as_input(frame: np.ndarray, device: torch.device) -> torch.Tensor:
    """A frame uint8 [H, W, 3] as [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1


def features_of(source: str, device: torch.device) -> Features:
    """The features of a folder, a hub id or a TorchScript file.

    Raises:
        ValueError: it cannot be loaded.
    """
    if Path(source).expanduser().is_file():
        return scripted(Path(source).expanduser(), device)
    transformers = need("transformers", "--fvd")
    try:
        model = transformers.VideoMAEModel.from_pretrained(source).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"--fvd {source}: no VideoMAE and no TorchScript file: {error}") from None
    if model.config.num_frames != CLIP:
        raise ValueError(f"--fvd {source}: it reads clips of {model.config.num_frames} frames: expected {CLIP}")
    mean, spread = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    @torch.inference_mode()
    def features(clips: np.ndarray) -> np.ndarray:
        rows = [(resized(clip, model.config.image_size) / 255 - mean) / spread for clip in clips]
        seen = [model(pixel_values=row[None].to(device)).last_hidden_state.mean(1)[0] for row in rows]
        return torch.stack(seen).double().cpu().numpy()

    return features


def scripted(path: Path, device: torch.device) -> Features:
    """The features of a TorchScript file that takes float32 [1, 3, T, 224, 224] in [-1, 1]. It is code: trust it."""
    try:
        model = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--fvd {path}: no TorchScript file: {str(error).splitlines()[0]}") from None

    @torch.inference_mode()
    def features(clips: np.ndarray) -> np.ndarray:
        rows = [(resized(clip, I3D_SIDE) / 127.5 - 1).permute(1, 0, 2, 3)[None].to(device) for clip in clips]
        try:
            return torch.cat([model(row).flatten(1) for row in rows]).double().cpu().numpy()
        except RuntimeError as error:
            raise ValueError(f"--fvd {path}: it takes no clips [1, 3, T, 224, 224]: {str(error)[:200]}") from None

    return features


def resized(clip: np.ndarray, side: int) -> torch.Tensor:
    """A clip uint8 [T, H, W, 3] as float32 [T, 3, side, side], 0 to 255."""
    pictures = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float()
    return torch.nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians fitted to rows [N, D] (Dowson and Landau, 1982), N from 2."""
    means, spreads = [x.mean(0) for x in (a, b)], [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    values, vectors = np.linalg.eigh(spreads[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    between = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ spreads[1] @ root), 0)).sum()
    return float(np.square(means[0] - means[1]).sum() + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * between)


def video_distances(stretches: Sequence[Stretch], frames: Frames, features: Features) -> list[Measure]:
    """Fréchet video distance of each kind, of the first clip of every stretch that has one and of each further one."""
    made = []
    for end in range(CLIP, max(map(len, stretches)) + 1, CLIP):
        long = [i for i, s in enumerate(stretches) if len(s) >= end]
        if len(long) < 2:
            break
        real = features(np.stack([stretches[i].frames[end - CLIP : end] for i in long]))
        for kind, runs in frames.items():
            ours = features(np.stack([runs[i][end - CLIP : end] for i in long]))
            rows = list(zip(real, ours, strict=True))
            merit = "lower" if kind == "dream" else ""
            made.append(measure_of("Fréchet video distance", kind, rows, distance_of, end, better=merit, draws=100))  # type: ignore[arg-type]
    return made


def distance_of(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return frechet(*(np.stack(side) for side in zip(*rows, strict=True)))
