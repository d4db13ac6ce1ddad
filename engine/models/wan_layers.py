"""Layers of the Wan2.1 denoiser: attention, cross-attention, the transformer block, the head, the image's embedding.

Parameters have the checkpoints' names. With bf16 weights all is bf16, the residual stream and its modulation too, as
published; statistics of norms are float32. adaLN vectors are made per latent frame, never per token.

Legend: N worlds, F latent frames, S tokens of a frame, D width, W frames' actions, A action encoding, h heads, d head
width, T tokens of a prompt or image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import attend, choose_kernel
from engine.kv.view import Group
from engine.models.matrix_game import Action, View, action_layer
from engine.models.rotary import Rotary, frequencies
from engine.published import WanSpec


@dataclass(frozen=True)
class Pass:
    """What all layers of one run of the denoiser share.

    Attributes:
        steer: six adaLN vectors of each latent frame [N, F, 6, D]; a layer adds its own.
        rotary: turns queries and keys.
        view: the histories.
        action: of a model with action modules.
    """

    steer: Tensor
    rotary: Rotary
    view: View
    action: Action | None = None


def sinusoid(times: Tensor, width: int) -> Tensor:
    """Features float64 [..., width] of timesteps 0 .. 1000: cosines, then sines."""
    angles = times.double()[..., None] * frequencies(width, 10_000.0, times.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without parameters, then scaled and shifted."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis, in float32 and cast back, then times a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight


class Attention(nn.Module):
    """The products and norms of one attention."""

    def __init__(self, spec: WanSpec):
        super().__init__()
        self.heads = spec.heads
        self.q, self.k, self.v, self.o = (nn.Linear(spec.width, spec.width) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(spec.width, spec.eps), RMSNorm(spec.width, spec.eps)

    def split(self, x: Tensor) -> Tensor:
        """[N, tokens, D] -> [N, tokens, h, d]."""
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    """Attention to the block and its history."""

    def forward(self, x: Tensor, rotary: Rotary, view: View, index: int) -> Tensor:
        """[N, F, S, D] -> the same."""
        tokens = x.flatten(1, 2)
        q, k = self.split(self.norm_q(self.q(tokens))), self.split(self.norm_k(self.k(tokens)))
        out = attend(rotary(q), k, self.split(self.v(tokens)), view.layer(index, "self"), rotary)
        return self.o(out.flatten(2)).view_as(x)


class CrossAttention(Attention):
    """Attention to a prompt, or to an image."""

    def read(self, *sequences: Tensor) -> tuple[Tensor, ...]:
        """Keys and values [1, T, h, d] of an embedded prompt or image [1, T, D]."""
        (tokens,) = sequences
        return self.split(self.norm_k(self.k(tokens))), self.split(self.v(tokens))

    def forward(self, x: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """[N, F, S, D] -> the same; every pair of keys and values [N, T, h, d] is attended to apart, and summed."""
        q = self.split(self.norm_q(self.q(x.flatten(1, 2))))
        kernel = choose_kernel(q)
        first, *more = (kernel(q, Group(slice(None), k, v)) for k, v in zip(context[::2], context[1::2], strict=True))
        return self.o(sum(more, first).flatten(2)).view_as(x)


class ImageCrossAttention(CrossAttention):
    """Attention to a prompt and to an image, which has keys and values of its own (Wan2.1 I2V)."""

    def __init__(self, spec: WanSpec):
        super().__init__(spec)
        self.k_img, self.v_img = (nn.Linear(spec.width, spec.width) for _ in range(2))
        self.norm_k_img = RMSNorm(spec.width, spec.eps)

    def read(self, *sequences: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of an embedded prompt, then those of an image, each [1, T, h, d]."""
        text, image = sequences
        return *super().read(text), self.split(self.norm_k_img(self.k_img(image))), self.split(self.v_img(image))


class Layer(nn.Module):
    """One transformer block, modulated per latent frame."""

    def __init__(self, spec: WanSpec, index: int):
        super().__init__()
        self.index, self.eps = index, spec.eps
        self.self_attn = SelfAttention(spec)
        self.norm3 = nn.LayerNorm(spec.width, eps=spec.eps)
        self.cross_attn = (ImageCrossAttention if spec.separate_image else CrossAttention)(spec)
        self.action_model = action_layer(spec.actions, spec.width, index, spec.eps) if spec.actions else None
        self.ffn = nn.Sequential(
            nn.Linear(spec.width, spec.ffn), nn.GELU(approximate="tanh"), nn.Linear(spec.ffn, spec.width)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, spec.width) / spec.width**0.5)

    def forward(self, x: Tensor, context: tuple[Tensor, ...], p: Pass) -> Tensor:
        """Tokens [N, F, S, D] -> tokens."""
        steer = (self.modulation + p.steer).unsqueeze(3).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = steer
        y = self.self_attn(modulate(x, shift, scale, self.eps), p.rotary, p.view, self.index)
        x = torch.addcmul(x, y, gate)
        x = x + self.cross_attn(self.norm3(x), context)
        if self.action_model is not None:
            x = self.action_model(x, p.action, p.view)
        return torch.addcmul(x, self.ffn(modulate(x, ffn_shift, ffn_scale, self.eps)), ffn_gate)


class Head(nn.Module):
    """The last, modulated norm and the projection to patches."""

    def __init__(self, spec: WanSpec):
        super().__init__()
        self.eps = spec.eps
        self.head = nn.Linear(spec.width, spec.out_channels * spec.patch**2)
        self.modulation = nn.Parameter(torch.randn(1, 2, spec.width) / spec.width**0.5)

    def forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, F, S, D] and their frames' levels [N, F, D] -> patches and features [N, F, S, D]."""
        shift, scale = (self.modulation + level.unsqueeze(2)).unsqueeze(3).unbind(2)
        features = modulate(x, shift, scale, self.eps)
        return self.head(features), features


class ImageEmbedding(nn.Module):
    """CLIP features [1, T, image width] -> [1, T, D]."""

    def __init__(self, spec: WanSpec):
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(spec.image_width),
            nn.Linear(spec.image_width, spec.image_width),
            nn.GELU(),
            nn.Linear(spec.image_width, spec.width),
            nn.LayerNorm(spec.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)
