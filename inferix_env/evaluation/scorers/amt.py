"""AMT-S, the network that VBench interpolates frames with, run from the user's checkout of its repository.

No package holds it, and its licence (CC BY-NC 4.0) keeps it out of this one.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from inferix_env.evaluation.scorers import vision

SIZES = {"corr_radius": 3, "corr_lvls": 4, "num_flows": 3}  # of cfgs/AMT-S.yaml
MULTIPLE = 16


def network(checkout: str | Path) -> nn.Module:
    """AMT-S with random weights, by the code in `networks/AMT-S.py` of a checkout, which is run.

    Raises:
        ValueError: the folder is no such checkout.
    """
    folder = Path(checkout).expanduser().resolve()
    if not (folder / "networks" / "AMT-S.py").is_file():
        raise ValueError(f"{str(checkout)!r} has no networks/AMT-S.py: expected a checkout of MCG-NKU/AMT")
    loaded = sys.modules.get("networks")
    if loaded is not None and str(folder / "networks") not in [str(Path(p).resolve()) for p in loaded.__path__]:
        raise ValueError(f"another package named networks is loaded, from {list(loaded.__path__)}: AMT cannot be")
    sys.path.insert(0, str(folder))  # its modules import each other as networks.* and utils.*
    try:
        return importlib.import_module("networks.AMT-S").Model(**SIZES)
    except ImportError as error:
        raise ValueError(f"the checkout of AMT in {str(checkout)!r} cannot be imported: {error}") from None
    finally:
        sys.path.remove(str(folder))


@dataclass(frozen=True)
class Between:
    """Frames halfway between two, by a network with AMT's interface.

    `model(before, after, t, eval=True)["imgt_pred"]`, pictures [1, 3, H, W] in 0..1 whose sides are multiples of 16.
    """

    model: nn.Module
    device: str

    @torch.inference_mode()
    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] twice -> uint8 [N, H, W, 3]."""
        return np.stack([self.one(a, b) for a, b in zip(before, after, strict=True)])

    def one(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        pixels = vision.tensor_of(np.stack([before, after]), self.device) / 255
        padded, (rows, columns) = vision.pad_to_multiple(pixels, MULTIPLE)
        half = torch.full((1, 1, 1, 1), 0.5, device=self.device)
        made = self.model(padded[:1], padded[1:], half, eval=True)["imgt_pred"][0, :, rows, columns]
        return (made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
