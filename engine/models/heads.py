"""Heads: reward, end and named variables, read from the trunk's features when a block is committed.

A block's features see the block itself, so they say what it paid and how the variables moved. Whether the *next*
step ends the episode is asked of the same features with the action of that step, before it is dreamed: real games
show no picture of an end, so an end cannot be read off one.

Legend: N worlds (or any batch), S tokens, D width, A action encoding, V variables, K changes a variable can make.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.models.seam import WHOLE, Seam
from engine.spec import WorldSpec


class Pool(nn.Module):
    """Attention pooling of tokens [B, S, D] -> [B, Q D']: Q learned queries over small values."""

    def __init__(self, width: int, queries: int = 8, value_width: int = 32):
        super().__init__()
        self.score = nn.Linear(width, queries)
        self.value = nn.Linear(width, value_width)

    def forward(self, tokens: Tensor) -> Tensor:
        # In float64, rounded at the end: in float32 these sums have other last bits for other batches and threads.
        weights = self.score(tokens).double().softmax(dim=1)
        return torch.einsum("bsq,bsd->bqd", weights, self.value(tokens).double()).flatten(1).to(tokens.dtype)


class Heads(nn.Module):
    """Reward, end and variable heads over one trunk.

    Attributes:
        hidden: width of the head state.
        reward_scale: (mean, spread) of rewards in the data, so that the linear layers work near one.
    """

    def __init__(self, spec: WorldSpec, hidden: int = 256):
        super().__init__()
        self.hidden = hidden
        self.seam: Seam = WHOLE
        self.reward_scale: Tensor
        width, num_variables = spec.denoiser.width, len(spec.variables)
        self.num_variables = num_variables
        self.pool = Pool(width)
        self.state = nn.Sequential(nn.Linear(8 * 32, hidden), nn.SiLU())
        self.changes = nn.ModuleList(nn.Linear(hidden, len(v.deltas)) for v in spec.variables)
        self.reward = nn.Linear(hidden, 1)
        future = hidden + num_variables + spec.actions.width
        self.end = nn.Sequential(nn.Linear(future, hidden), nn.SiLU(), nn.Linear(hidden, 2))
        self.register_buffer("reward_scale", torch.tensor([0.0, 1.0]))

    def summarise(self, features: Tensor) -> Tensor:
        """Tokens of one latent frame [B, S, D] -> head state [B, hidden]."""
        return self.state(self.pool(self.seam.join(features, 1)))

    def now(self, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Reward [B] of the committed block and, per variable, logits [B, K] over its changes."""
        mean, spread = self.reward_scale.float()
        reward = self.reward(state).squeeze(-1).float() * spread + mean
        return reward, [head(state).float() for head in self.changes]

    def next(self, state: Tensor, variables: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """What the next step would bring: the logit of an end [B], and the reward [B] if it ends.

        Args:
            state: [B, hidden] of the last committed block.
            variables: [B, V], scaled, as they stand now.
            action: [B, A] of the next step.
        """
        joined = torch.cat([state, variables.to(state.dtype), action.to(state.dtype)], dim=-1)
        logit, reward = self.end(joined).float().unbind(-1)
        mean, spread = self.reward_scale.float()
        return logit, reward * spread + mean


class Silent(nn.Module):
    """Heads of a model that has none: no reward, no end, no variables. Answers as `Heads` does."""

    hidden = 0

    def summarise(self, features: Tensor) -> Tensor:
        return features.new_zeros(len(features), 0)

    def now(self, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        return torch.zeros(len(state)), []

    def next(self, state: Tensor, variables: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(state),), -torch.inf), torch.zeros(len(state))
