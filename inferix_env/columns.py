"""How a vector env returns its columns: NumPy arrays on the host, or torch tensors on the engine's device.

Chosen once, when the env is made. Knows blocks and frames; knows no worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import Block


class HostArrays:
    """NumPy on the host."""

    def pictures(self, blocks: Sequence[Block]) -> Sequence[np.ndarray]:
        """Frames uint8 [T, H, W, 3] of each block, brought to the host all at once."""
        if len({len(block.pictures) for block in blocks}) > 1:  # some of them their world's first
            return [block.frames for block in blocks]
        return list(torch.stack([block.pictures for block in blocks]).cpu().numpy()) if blocks else []

    def shown(self, frames: np.ndarray) -> np.ndarray:
        """Frames that were on the host all along."""
        return frames

    def stack(self, rows: Sequence[Any]) -> np.ndarray:
        """One row a world -> a batch, copied."""
        return np.stack(rows)

    def column(self, values: np.ndarray) -> np.ndarray:
        """Rewards float64, or flags."""
        return values

    def infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        return infos


class DeviceTensors:
    """Torch tensors on a device, which pictures never leave unless the engine runs on ranks of its own."""

    def __init__(self, device: torch.device):
        self.device = device

    def pictures(self, blocks: Sequence[Block]) -> Sequence[Tensor]:
        """See `HostArrays`. Stacked outside inference mode they are tensors that autograd takes."""
        if len({len(block.pictures) for block in blocks}) > 1:
            with torch.inference_mode(False):
                return [block.pictures.to(self.device, copy=True) for block in blocks]
        return list(torch.stack([block.pictures for block in blocks]).to(self.device)) if blocks else []

    def shown(self, frames: np.ndarray) -> Tensor:
        return torch.from_numpy(frames).to(self.device)

    def stack(self, rows: Sequence[Any]) -> Tensor:
        return torch.stack(list(rows))

    def column(self, values: np.ndarray) -> Tensor:
        """Rewards as float32, or flags."""
        rows = torch.from_numpy(values)
        return rows.to(self.device, torch.float32 if rows.is_floating_point() else rows.dtype)

    def infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Columns of tensors as one tensor, zeros where a world has none; `final_obs` stays an array of objects."""
        made = dict(infos)
        for key, column in infos.items():
            if isinstance(column, dict):
                made[key] = self.infos(column)
            elif column.dtype == object and key != "final_obs":
                there = next(x for x in column if x is not None)
                if isinstance(there, Tensor):
                    made[key] = torch.stack([torch.zeros_like(there) if x is None else x for x in column])
        return made
