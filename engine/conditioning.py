"""Condition: everything that steers a block, as one immutable value. Imports nothing of ours but spec."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What steers F latent frames of N worlds, or of one world where the N axis is missing.

    Attributes:
        actions: encoded actions float32 [N, F, A] (see spec); zeros stand for no action.
        variables: the named variables as they stood before each frame, scaled to [-1, 1], float32 [N, F, V].
    """

    actions: Tensor
    variables: Tensor

    def to(self, device: torch.device) -> Condition:
        return Condition(self.actions.to(device), self.variables.to(device))

    @staticmethod
    def stack(conditions: list[Condition]) -> Condition:
        """Conditions of single worlds -> one with a leading N axis."""
        return Condition(torch.stack([c.actions for c in conditions]), torch.stack([c.variables for c in conditions]))
