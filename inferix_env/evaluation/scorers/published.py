"""The six scorers by the models that LV-Bench and VBench measure with, at VBench's scale.

Weights are the user's: a folder of transformers, a hub id, a file. Nothing is downloaded but by a hub id. A scorer's
value over a whole clip is VBench's: of subject, background and motion its consistency and smoothness, of aesthetic the
LAION score / 10, of clarity MUSIQ / 100. VDE is the same at any scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inferix_env.evaluation.scorers import amt, flow, vision
from inferix_env.evaluation.scorers.loading import filled, imported, pretrained
from inferix_env.evaluation.scorers.scorer import Consistency, Interpolated, Mean, Pairs, Scorer, itself

SIDE = 224  # of the pictures that CLIP and DINO look at
LONGEST = 512  # of the pictures that MUSIQ looks at
SMALLEST = 128  # side of the pictures that RAFT looks at
UPDATES = 20  # of RAFT's flow


@dataclass(frozen=True)
class ClipLook:
    """CLIP's image features [T, D]: shorter side to 224 by bicubic, the middle cut out."""

    model: nn.Module
    device: str

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return self.features(frames).cpu().numpy()

    def features(self, frames: np.ndarray) -> Tensor:
        pixels = vision.resize_shorter(vision.tensor_of(frames, self.device), SIDE, "bicubic")
        pixels = vision.standardised(vision.crop_middle(pixels, SIDE), vision.CLIP_MEAN, vision.CLIP_STD)
        return self.model(pixel_values=pixels).image_embeds


@dataclass(frozen=True)
class DinoLook:
    """DINO's class token [T, D]: shorter side to 224, nothing cut off."""

    model: nn.Module
    device: str

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        pixels = vision.resize_shorter(vision.tensor_of(frames, self.device), SIDE, "bilinear")
        pixels = vision.standardised(pixels, vision.IMAGENET_MEAN, vision.IMAGENET_STD)
        return self.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0].cpu().numpy()


@dataclass(frozen=True)
class AestheticLook:
    """LAION's linear head on CLIP's features at unit length, over 10 [T]."""

    clip: ClipLook
    head: nn.Module

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return (self.head(F.normalize(self.clip.features(frames), dim=-1))[:, 0] / 10).cpu().numpy()


@dataclass(frozen=True)
class MusiqLook:
    """MUSIQ over 100 [T]: frames whose longer side is above 512 are brought down to it."""

    model: nn.Module
    device: str

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        pixels = vision.limit_longer(vision.tensor_of(frames, self.device), LONGEST) / 255
        return (self.model(pixels).reshape(len(frames)) / 100).cpu().numpy()


@dataclass(frozen=True)
class RaftSpeed:
    """The speed of each pair's fastest twentieth of pixels [N], by RAFT; small frames are enlarged to 128 first."""

    model: nn.Module
    device: str

    @torch.inference_mode()
    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return flow.fastest(np.concatenate([self.flow(a, b) for a, b in zip(before, after, strict=True)]))

    def flow(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """One pair's flow [1, 2, H, W]; one at a time, as all pixels' correlations are held at once."""
        pixels = vision.tensor_of(np.stack([before, after]), self.device) / 127.5 - 1
        if min(pixels.shape[-2:]) < SMALLEST:
            pixels = vision.resize_shorter(pixels, SMALLEST, "bilinear")
        padded, (rows, columns) = vision.pad_to_multiple(pixels, 8)
        made = self.model(padded[:1], padded[1:], num_flow_updates=UPDATES)[-1]
        return made[..., rows, columns].cpu().numpy()


def background(source: str | Path = "openai/clip-vit-base-patch32", device: str = "cpu") -> Scorer:
    """VBench's background consistency, from a folder or hub id of CLIP ViT-B/32."""
    model = pretrained("CLIPVisionModelWithProjection", source, device, "background consistency")
    return Scorer(
        name="background",
        method="background consistency of VBench: CLIP ViT-B/32 features",
        stand_in=False,
        higher_is_better=True,
        moves="falls as the scene changes",
        look=ClipLook(model, device),
        tally=Consistency,
    )


def subject(source: str | Path = "facebook/dino-vitb16", device: str = "cpu") -> Scorer:
    """VBench's subject consistency, from a folder or hub id of DINO ViT-B/16."""
    model = pretrained("ViTModel", source, device, "subject consistency", add_pooling_layer=False)
    return Scorer(
        name="subject",
        method="subject consistency of VBench: DINO ViT-B/16 features",
        stand_in=False,
        higher_is_better=True,
        moves="falls as the main object becomes another",
        look=DinoLook(model, device),
        tally=Consistency,
    )


def aesthetic(head: str | Path, source: str | Path = "openai/clip-vit-large-patch14", device: str = "cpu") -> Scorer:
    """VBench's aesthetic quality, from LAION's linear head and a folder or hub id of CLIP ViT-L/14."""
    clip: Any = pretrained("CLIPVisionModelWithProjection", source, device, "aesthetic quality")
    width = clip.config.projection_dim
    return Scorer(
        name="aesthetic",
        method="aesthetic quality of VBench: LAION's linear head on CLIP ViT-L/14, over 10",
        stand_in=False,
        higher_is_better=True,
        moves="falls as pictures please less, by ratings that people gave",
        look=AestheticLook(ClipLook(clip, device), filled(nn.Linear(width, 1), head, device)),
        tally=Mean,
    )


def clarity(weights: str | Path, device: str = "cpu") -> Scorer:
    """VBench's imaging quality, from the file of MUSIQ (SPAQ) that pyiqa publishes."""
    made = imported("pyiqa.archs.musiq_arch", "imaging quality").MUSIQ(pretrained=False)
    return Scorer(
        name="clarity",
        method="imaging quality of VBench: MUSIQ (SPAQ), over 100",
        stand_in=False,
        higher_is_better=True,
        moves="falls with blur, noise and wrong exposure",
        look=MusiqLook(filled(made, weights, device), device),
        tally=Mean,
    )


def dynamic(weights: str | Path, device: str = "cpu") -> Scorer:
    """Dynamic degree as a number, from a file of torchvision's large RAFT."""
    made = imported("torchvision.models.optical_flow", "dynamic degree").raft_large(weights=None)
    model = filled(made, weights, device)
    return Scorer(
        name="dynamic",
        method="RAFT flow: mean speed of the fastest twentieth, pixels a frame at a height of 256",
        stand_in=False,
        higher_is_better=True,
        moves="falls to 0 as motion stops; rises with speed",
        look=itself,
        tally=lambda: Pairs(RaftSpeed(model, device)),
    )


def motion(checkout: str | Path, weights: str | Path, device: str = "cpu") -> Scorer:
    """VBench's motion smoothness, from a checkout of AMT's repository and its file of AMT-S."""
    model = filled(amt.network(checkout), weights, device)
    return Scorer(
        name="motion",
        method="motion smoothness of VBench: interpolation by AMT-S",
        stand_in=False,
        higher_is_better=True,
        moves="falls with flicker and jumps; rises as motion slows, to 1 for a still",
        look=itself,
        tally=lambda: Interpolated(amt.Between(model, device)),
    )
