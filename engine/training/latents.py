"""Encode a data set once, and draw sequences from it: what the denoiser and the heads train on.

Latents of a split lie beside the run's checkpoints, one file a shard, so encoding goes on where it was killed. Each
carries a digest of the codec that made it: one that has been trained on encodes again.
Knows data and the codec.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from tqdm import tqdm

from engine.actions import ActionSpec, action_spec
from engine.codecs.autoencoder import SCALE, AutoEncoder
from engine.spec import WorldSpec
from engine.training.data import TERMINATED, Shards
from engine.training.precision import autocast
from engine.training.rarity import ColourRarity


@dataclass(frozen=True)
class Latents:
    """Every row of a split, encoded.

    Attributes:
        latents: float16 [T, C, h, w].
        rarity: float16 [T, h, w], how rare the colours under each latent are (see rarity.py).
    """

    latents: torch.Tensor
    rarity: torch.Tensor


def encode_split(codec: AutoEncoder, data: Path, split: str, folder: Path, device: torch.device) -> Latents:
    """Every row of a split, encoded or read back from `folder`."""
    shards, rarity = Shards(data, split), ColourRarity.of(Shards(data, "train")).to(device)
    made_by = {"codec": digest(codec)}
    parts = []
    for i, path in enumerate(tqdm(shards.paths, desc=f"encode {split}", unit="shard")):
        cached = folder / f"latents-{path.name}"
        if not cached.exists() or read_metadata(cached) != made_by:
            low, high = (int(x) for x in shards.offsets[i : i + 2])
            chunks = [encode(codec, rarity, shards.frames(a, min(a + 64, high)), device) for a in range(low, high, 64)]
            joined = {k: torch.cat([c[k] for c in chunks]) for k in chunks[0]}
            save_file(joined, cached.with_suffix(".tmp"), metadata=made_by)
            os.replace(cached.with_suffix(".tmp"), cached)
        parts.append(load_file(cached))
    return Latents(torch.cat([p["latents"] for p in parts]), torch.cat([p["rarity"] for p in parts]))


def digest(codec: AutoEncoder) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of what a codec encodes by."""
    state = {k: v for k, v in codec.state_dict().items() if not k.startswith("decoder.")}
    return hashlib.sha256(save({k: v.cpu().contiguous() for k, v in state.items()})).hexdigest()[:16]


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


@torch.no_grad()
def encode(
    codec: AutoEncoder, rarity: ColourRarity, frames: np.ndarray, device: torch.device
) -> dict[str, torch.Tensor]:
    pictures = torch.from_numpy(frames).to(device)
    with autocast(device):
        latents, _ = codec.encode(pictures[None])
    made = {"latents": latents[0], "rarity": rarity.cells(pictures, SCALE)}
    return {name: x.to("cpu", torch.float16).contiguous() for name, x in made.items()}


@dataclass
class Episodes:
    """A split in memory, ready for sequences.

    Attributes:
        latents, rarity: as in `Latents`.
        actions: encoded, float32 [T, A]; zeros at an episode's first row.
        variables: raw, float32 [T, V].
        motion: float32 [T], mean squared latent change since the row before, 0 at a start.
        first, last: for each row, the first row of its episode and the last one with a picture.
        ends_next: 1 where the step after this row terminated the episode.
    """

    latents: torch.Tensor
    rarity: torch.Tensor
    actions: np.ndarray
    variables: np.ndarray
    rewards: np.ndarray
    motion: np.ndarray
    first: np.ndarray
    last: np.ndarray
    ends_next: np.ndarray

    @classmethod
    def read(cls, data: Path, split: str, encoded: Latents) -> Episodes:
        shards = Shards(data, split)
        starts, valid, ends = shards.starts, shards.column("valid").astype(bool), shards.column("ends")
        actions = action_spec(shards.metadata["actions"]).encode_rows(shards.column("actions"))
        actions[starts[:-1]] = 0
        latents, lengths = encoded.latents, np.diff(starts)
        closing = starts[1:] - 1 - ~valid[starts[1:] - 1]  # an episode's last row with a picture
        motion = np.zeros(len(latents), np.float32)
        for a in range(1, len(latents), 4096):
            now, before = latents[a : a + 4096].float(), latents[a - 1 : a - 1 + min(4096, len(latents) - a)].float()
            motion[a : a + 4096] = (now - before).square().mean((1, 2, 3)).numpy()
        motion[starts[:-1]] = 0
        ends_next = np.zeros(len(latents), np.float32)
        ends_next[:-1] = ends[1:] == TERMINATED
        ends_next[starts[1:] - 1] = 0
        return cls(
            latents=latents,
            rarity=encoded.rarity,
            actions=actions,
            variables=shards.column("variables"),
            rewards=shards.column("rewards"),
            motion=motion,
            first=np.repeat(starts[:-1], lengths),
            last=np.repeat(closing, lengths),
            ends_next=ends_next,
        )

    def sequence_starts(self, frames: int) -> np.ndarray:
        """Rows from which `frames` rows with pictures of one episode follow.

        Raises:
            ValueError: no episode is that long.
        """
        rows = np.arange(len(self.latents))
        good = rows[rows + frames - 1 <= self.last]
        if len(good) == 0:
            raise ValueError(
                f"no episode has {frames} frames: shorten the training sequences or collect longer episodes"
            )
        return good

    def sequences(self, starts: np.ndarray, frames: int, spec: WorldSpec) -> dict[str, torch.Tensor]:
        """latents [N, F, C, h, w], rarity [N, F, 1, h, w], actions [N, F, A], variables before each row [N, F, V]."""
        rows = starts[:, None] + np.arange(frames)
        before = np.maximum(rows - 1, self.first[rows])
        chosen = torch.from_numpy(rows)
        return {
            "latents": self.latents[chosen].float(),
            "rarity": self.rarity[chosen].float()[:, :, None],
            "actions": torch.from_numpy(self.actions[rows]),
            "variables": torch.from_numpy(spec.encode_variables(self.variables[before])),
        }


def actions_of(data: Path) -> ActionSpec:
    """The action spec recorded with a data set."""
    return action_spec(Shards(data, "train").metadata["actions"])
