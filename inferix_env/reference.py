"""Reference: what real frames look like in a world's latents, and a probe that reads actions off them.

A file beside the world, guard.safetensors, which `python -m inferix_env.evaluation.reference` writes: mean and
whitening of channel statistics of real latent frames, and the probe's weights. It belongs to the world's codec, whose
latents it describes, and says so: a world with another codec needs another. Knows torch and latents; runs no world.

Legend: N rows, C h w latent, A action encoding, D = 2 C statistics.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from engine import WorldSpec, read_card
from inferix_env.record import temporary_name

NAME, FORMAT = "guard.safetensors", "inferix_env guard"
KINDS = ("discrete", "continuous")


class ActionProbe(nn.Module):
    """Latent frames before and after, [N, C, h, w] each -> what led from one to the other, [N, A].

    Logits of a discrete action, else the encoded action itself, in about [-1, 1].
    """

    def __init__(self, spec: WorldSpec):
        super().__init__()
        channels, height, width = spec.latent
        cells = -(-height // 4) * -(-width // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48 * cells, 64),
            nn.ReLU(),
            nn.Linear(64, spec.actions.width),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.layers(torch.cat([after - before, after], dim=1))


@dataclass(frozen=True, eq=False)
class Reference:
    """What real latent frames look like.

    Attributes:
        mean: of `statistics`, float64 [D].
        whiten: [D, D]; turns statistics less their mean into uncorrelated ones of spread 1.
        probe: of actions.
        residual: the probe's squared error on real frames, float32 [A]; ones for a discrete action.
        kind: of the actions, one of KINDS.
    """

    mean: np.ndarray
    whiten: np.ndarray
    probe: ActionProbe
    residual: Tensor
    kind: str

    def distance(self, latent: Tensor) -> float:
        """How unusual one latent frame [C, h, w] is: 1 is about what real ones are."""
        aside = self.whiten @ (statistics(latent[None])[0] - self.mean)
        return float(np.sqrt(np.square(aside).mean()))

    @torch.inference_mode()
    def missed(self, past: Tensor, latents: Tensor, actions: Tensor) -> float:
        """What the probe misses of the actions [F, A] that led from [1, C, h, w] through latent frames [F, C, h, w]."""
        after = latents.float().cpu()
        before = torch.cat([past.float().cpu(), after[:-1]])
        return float(loss(self.probe(before, after), actions.float().cpu(), self.residual, self.kind).mean())


def statistics(latents: Tensor) -> np.ndarray:
    """Mean and logarithm of the spread of each channel of latent frames [N, C, h, w], float64 [N, D]."""
    flat = latents.detach().cpu().double().flatten(2).numpy()
    return np.concatenate([flat.mean(-1), np.log(flat.std(-1) + 1e-3)], axis=1)


def loss(guess: Tensor, actions: Tensor, residual: Tensor, kind: str) -> Tensor:
    """Nats [N] of a discrete action; of another, half the mean squared error over `residual`."""
    if kind == "discrete":
        return F.cross_entropy(guess, actions.argmax(-1), reduction="none")
    return ((guess - actions).square() / residual).mean(-1) / 2


def whitening(rows: np.ndarray, shrink: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and whitening matrix [D, D] of rows [N, D]; the covariance shrunk a little towards its diagonal."""
    mean = rows.mean(0)
    covariance = np.cov(rows, rowvar=False)
    covariance = (1 - shrink) * covariance + shrink * np.diag(np.diag(covariance) + 1e-9)
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors.T / np.sqrt(values)[:, None]


def write_reference(folder: Path, reference: Reference) -> Path:
    """Write a reference beside its world; returns the path."""
    tensors = {f"probe.{name}": x.contiguous() for name, x in reference.probe.state_dict().items()}
    tensors["mean"], tensors["whiten"] = torch.from_numpy(reference.mean), torch.from_numpy(reference.whiten.copy())
    tensors["residual"] = reference.residual
    path = folder / NAME
    about = {"format": FORMAT, "kind": reference.kind, "codec": codec_hash(folder)}
    temporary = temporary_name(path)
    temporary.write_bytes(save(tensors, about))
    temporary.replace(path)
    return path


def reference_of(folder: Path) -> Reference:
    """The reference beside a world, read once.

    Raises:
        ValueError: there is none, or it is damaged, or of another codec.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(
            f"guard signals 'latent' and 'action' need {NAME} in {folder}: write it with "
            f"python -m inferix_env.evaluation.reference --world {folder}, or ask for 'renoise' alone"
        )
    return _read(folder, path.stat().st_mtime_ns, (folder / "model.safetensors").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(folder: Path, stamp: int, weights: int) -> Reference:
    path = folder / NAME
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT or about.get("kind") not in KINDS:
            raise ValueError("its format is another")
        probe = ActionProbe(WorldSpec.from_dict(read_card(folder)["spec"])).eval().requires_grad_(False)
        own = {name.removeprefix("probe."): x for name, x in tensors.items() if name.startswith("probe.")}
        probe.load_state_dict(own)
        parts = tensors["mean"].numpy(), tensors["whiten"].numpy(), probe, tensors["residual"], about["kind"]
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no guard of this world: {error}. Write it again") from None
    if about.get("codec") != codec_hash(folder):
        raise ValueError(
            f"{path} is of another codec than {folder / 'model.safetensors'} has: write it again with "
            f"python -m inferix_env.evaluation.reference --world {folder}"
        )
    return Reference(*parts)


def codec_hash(folder: Path) -> str:
    """sha256 of the spec's codec and of a world's codec weights, as they lie in its file."""
    digest = hashlib.sha256(json.dumps(read_card(folder)["spec"]["codec"], sort_keys=True).encode())
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in sorted(x for x in file.keys() if x.startswith("codec.")):  # noqa: SIM118
            digest.update(name.encode())
            digest.update(file.get_tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
