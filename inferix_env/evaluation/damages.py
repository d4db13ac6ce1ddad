"""Known damage to clips, at a strength that may change from frame to frame.

A damage takes frames uint8 [T, H, W, 3] and amounts [T] from 0, which leaves a frame as it is, to 1, and returns frames
of the same shape. Which frames freeze, and the noise, follow from the generator. Knows frames alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

WIDEST = 3.0  # pixels: the standard deviation of the blur at 1
CAST, DIMMED = 0.5, 0.5  # how far red is raised and blue lowered at 1; how much darker every second frame is
GRAIN = 40.0  # grey levels: the standard deviation of the noise at 1


@dataclass(frozen=True)
class Scene:
    """What a damage may draw from: random numbers, and another clip of the same shape."""

    rng: np.random.Generator
    other: np.ndarray


Damage = Callable[[np.ndarray, np.ndarray, Scene], np.ndarray]


def blur(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """Gaussian blur, of 3 pixels at 1."""
    return np.stack([blurred(frame, WIDEST * float(a)) for frame, a in zip(frames, amounts, strict=True)])


def blurred(frame: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 [H, W, 3] under a Gaussian of `sigma` pixels; edges repeat."""
    reach = int(np.ceil(3 * sigma))
    if not reach:
        return frame
    kernel = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float32).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=3)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=3)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def freeze(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """Frames that repeat the one shown before them, each with its amount as probability."""
    moves = scene.rng.random(len(frames)) >= amounts
    moves[0] = True
    return frames[np.maximum.accumulate(np.where(moves, np.arange(len(frames)), 0))]


def cast(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """A warm cast: at 1 red is half again as strong, and blue half."""
    gains = 1 + CAST * amounts[:, None] * np.array([1, 0, -1])
    return whole(frames * gains[:, None, None])


def fade(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """Colours that fade, to grey at 1."""
    grey = (frames @ np.array([0.299, 0.587, 0.114]))[..., None]
    return whole(frames + amounts[:, None, None, None] * (grey - frames))


def swap(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """Another clip in the middle of this one, at 1 all over it: the amount is the share of its height and width."""
    out = frames.copy()
    height, width = frames.shape[1:3]
    for frame, other, amount in zip(out, scene.other, amounts, strict=True):
        top, left = (round(side * (1 - amount) / 2) for side in (height, width))
        middle = slice(top, height - top), slice(left, width - left)
        frame[middle] = other[middle]
    return out


def noise(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """Gaussian noise, new in every frame, of 40 grey levels at 1."""
    grain = scene.rng.standard_normal(frames.shape, np.float32)
    return whole(frames + GRAIN * amounts[:, None, None, None] * grain)


def flicker(frames: np.ndarray, amounts: np.ndarray, scene: Scene) -> np.ndarray:
    """Every second frame is darker, by half at 1."""
    odd = np.arange(len(frames)) % 2
    return whole(frames * (1 - DIMMED * amounts * odd)[:, None, None, None])


def whole(values: np.ndarray) -> np.ndarray:
    """Grey levels as uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def fitted(clip: np.ndarray, count: int, height: int, width: int) -> np.ndarray:
    """A clip uint8 [T, h, w, 3] at another size, from its beginning again where it ends: [count, height, width, 3]."""
    frames = clip[np.arange(count) % len(clip)]
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


DAMAGES: dict[str, Damage] = {
    "blur": blur,
    "frozen": freeze,
    "cast": cast,
    "fading": fade,
    "swap": swap,
    "noise": noise,
    "flicker": flicker,
}
