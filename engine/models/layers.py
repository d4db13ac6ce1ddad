"""Parts that denoisers share. Legend: N worlds, F latent frames, S tokens, D width, h heads, d head width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import LayerView, attend
from engine.rope import rotate


def level_features(levels: Tensor, width: int) -> Tensor:
    """Sinusoidal features float32 [..., width] of noise levels in [0, 1]."""
    frequencies = torch.exp(torch.linspace(0, 7, width // 2, device=levels.device))
    angles = levels.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters of [N, F, S, D], then scaled and shifted per latent frame by [N, F, D]."""
    x = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(shift.unsqueeze(-2), x, 1 + scale.unsqueeze(-2))


class RMSNorm(nn.Module):
    """The weight of x / rms(x) * weight over the last axis."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) * weight over the last axis, in the precision of x."""
    return F.rms_norm(x, x.shape[-1:], None, 1e-6) * weight.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with query and key norms and rotary positions, over a view."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], view: LayerView) -> Tensor:
        """[N, S, D] -> [N, S, D]. Queries and keys are normed and turned together: half as many calls."""
        qk, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=2)
        weights = torch.stack([self.q_norm.weight, self.k_norm.weight])[:, None]
        q, k = rotate(rms_norm(qk, weights), *rope).unbind(2)
        return self.out(attend(q, k, v.squeeze(2), view).flatten(2))


class Mlp(nn.Module):
    """Two linears around a squared ReLU (So et al., "Primer", 2021): as good as GELU and far cheaper on a CPU."""

    def __init__(self, width: int, ratio: int = 4):
        super().__init__()
        self.up = nn.Linear(width, ratio * width, bias=False)
        self.down = nn.Linear(ratio * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Layer(nn.Module):
    """A transformer block with adaLN-zero (Peebles & Xie, DiT, 2023), modulated per latent frame."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = Mlp(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, rope: tuple[Tensor, Tensor], view: LayerView) -> Tensor:
        """Tokens [N, F, S, D] and their frames' condition [N, F, D] -> tokens."""
        shape = x.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)
        mixed = self.attention(modulate(x, shift_a, scale_a).flatten(1, 2), rope, view).view(shape)
        x = torch.addcmul(x, gate_a.unsqueeze(-2), mixed)
        return torch.addcmul(x, gate_m.unsqueeze(-2), self.mlp(modulate(x, shift_m, scale_m)))
