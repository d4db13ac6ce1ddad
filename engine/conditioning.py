"""Condition: everything that steers a block, as one immutable value. Imports nothing of ours but spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What steers F latent frames of one world; stacked, of N worlds, with a leading N axis.

    Attributes:
        actions: encoded actions float32 [F, A] (see spec); zeros stand for no action.
        variables: the named variables as they stood before each frame, scaled to [-1, 1], float32 [F, V]. They are
            the world's own: the engine fills them in.
    """

    actions: Tensor
    variables: Tensor

    @classmethod
    def of(cls, actions: np.ndarray) -> Condition:
        """The condition of a step, from encoded actions float32 [F, A]."""
        rows = torch.from_numpy(np.ascontiguousarray(actions, np.float32))
        return cls(rows, rows.new_zeros(*rows.shape[:-1], 0))

    def to(self, device: torch.device) -> Condition:
        return Condition(self.actions.to(device), self.variables.to(device))

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Conditions of single worlds -> one with a leading N axis."""
        actions, variables = ([getattr(c, name) for c in conditions] for name in ("actions", "variables"))
        return Condition(torch.stack(actions), torch.stack(variables))
