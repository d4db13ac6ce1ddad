"""Layers of the MAGI-1 denoiser: attention to chunks in range and to their prompts, the MLP, the transformer block.

Parameters have the checkpoints' names. Of a model in bf16 some stay float32, as published (`island`): what embeds,
turns, norms queries and keys, norms before the residual stream, and the head. Gates are made per chunk, not per token.

Legend: N worlds, c chunks in flight, F latent frames, S tokens of a frame, D width, C condition's width, T tokens of a
prompt, h heads, k kv heads, g queries of a kv head, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from engine.attention import attend, choose_kernel
from engine.conditioning import Context
from engine.fp8 import SmoothLinear, TensorLinear
from engine.kv.view import Group
from engine.models.magi_embeddings import Rotary
from engine.models.matrix_game import View
from engine.published import MagiSpec

GROUPS = 8  # in which the two attentions' channels alternate, whatever the number of heads
ISLANDS = (
    "x_embedder",
    "y_embedder",
    "t_embedder",
    "rope",
    "final_linear",
    "final_layernorm",
    "q_layernorm",
    "k_layernorm",
    "self_attn_post_norm",
    "mlp_post_norm",
)


def island(name: str) -> bool:
    """Whether a parameter stays float32 in a model of lower precision."""
    return not set(ISLANDS).isdisjoint(name.split("."))


@dataclass(frozen=True)
class Pass:
    """What all layers of one run of the denoiser share.

    Attributes:
        condition: of each chunk, [N, c, C].
        rotary: turns queries and keys.
        view: the histories.
        chunks: contexts of each world's chunks, oldest first.
    """

    condition: Tensor
    rotary: Rotary
    view: View
    chunks: Sequence[Sequence[Context]]

    @cached_property
    def runs(self) -> list[list[tuple[Context, int]]]:
        """Of each world its contexts in order, and how many chunks in a row have one."""
        rows = [[list(run) for _, run in groupby(contexts, key=id)] for contexts in self.chunks]
        return [[(run[0], len(run)) for run in row] for row in rows]


class CenteredNorm(nn.LayerNorm):
    """LayerNorm whose stored weight is its scale less one; computes and returns in the weight's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight + 1, self.bias, self.eps)


class WideLinear(nn.Linear):
    """A linear without bias that returns the float32 sums of its products, whatever its weight's precision."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.dtype != torch.float32:  # the same sums as of upcast factors, on the fast units
            return torch.mm(x.flatten(0, -2), self.weight.t(), out_dtype=torch.float32).view(*x.shape[:-1], -1)
        return F.linear(x.float(), self.weight.float())


@dataclass(frozen=True)
class Linears:
    """What the linears of one layer are made of: (in, out) -> a module without bias.

    Attributes:
        plain: products from the residual stream.
        wide: the attention's projection; its sums are float32 where it is not quantised.
        last: of the MLP.
    """

    plain: Callable[[int, int], nn.Module]
    wide: Callable[[int, int], nn.Module]
    last: Callable[[int, int], nn.Module]

    @classmethod
    def of(cls, spec: MagiSpec, index: int) -> Linears:
        if spec.fp8 and 0 < index < spec.layers - 1:
            return cls(TensorLinear, SmoothLinear, SmoothLinear)
        return cls(plain_linear, lambda i, o: WideLinear(i, o, bias=False), plain_linear)


def plain_linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Projections(nn.Module):
    """The first norm and the products from it: of self-attention, and cross-attention's queries `qx`."""

    def __init__(self, spec: MagiSpec, linears: Linears):
        super().__init__()
        queries, keys = spec.heads * spec.head_width, spec.kv_heads * spec.head_width
        self.layer_norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.q, self.qx = linears.plain(spec.width, queries), linears.plain(spec.width, queries)
        self.k, self.v = linears.plain(spec.width, keys), linears.plain(spec.width, keys)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        normed = self.layer_norm(x)
        return self.q(normed), self.qx(normed), self.k(normed), self.v(normed)


class Attention(nn.Module):
    """Self-attention to what the view shows each chunk, beside cross-attention of each chunk to its prompt."""

    def __init__(self, spec: MagiSpec, linears: Linears):
        super().__init__()
        self.width, self.kv_heads, self.shared = spec.head_width, spec.kv_heads, spec.heads // spec.kv_heads
        queries = spec.heads * spec.head_width
        self.linear_qkv = Projections(spec, linears)
        self.linear_kv_xattn = plain_linear(spec.width, 2 * spec.kv_heads * spec.head_width)
        self.linear_proj = linears.wide(2 * queries, spec.width)
        norms = (CenteredNorm(spec.head_width, spec.eps) for _ in range(4))
        self.q_layernorm, self.k_layernorm, self.q_layernorm_xattn, self.k_layernorm_xattn = norms

    def forward(self, x: Tensor, p: Pass, index: int) -> Tensor:
        """[N, F S, D] -> [N, F S, D], in float32 where the projection is not quantised."""
        q, qx, k, v = (y.unflatten(-1, (-1, self.width)) for y in self.linear_qkv(x))
        q, k = (p.rotary(norm(y)).to(x.dtype) for norm, y in ((self.q_layernorm, q), (self.k_layernorm, k)))
        own = self.unfold(attend(self.fold(q), k, v.to(x.dtype), p.view.layer(index, "self")))
        prompt = self._prompt(self.fold(self.q_layernorm_xattn(qx)), p, index)
        both = torch.stack([y.unflatten(-1, (GROUPS, -1)) for y in (own, self.unfold(prompt))], dim=-2)
        return self.linear_proj(both.flatten(2))

    def read(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, T, k, d] of an embedded prompt [1, T, D]."""
        k, v = self.linear_kv_xattn(text).unflatten(-1, (self.kv_heads, 2, self.width)).unbind(-2)
        return self.k_layernorm_xattn(k), v

    def fold(self, q: Tensor) -> Tensor:
        """Queries [N, S, h, d] -> [N, S g, k, d]: those that share a kv head are one after another, as if tokens."""
        return rearrange(q, "n s (k g) d -> n (s g) k d", k=self.kv_heads)

    def unfold(self, x: Tensor) -> Tensor:
        """Attention's output [N, S g, k, d] -> [N, S, h d]."""
        return rearrange(x, "n (s g) k d -> n s (k g d)", g=self.shared)

    def _prompt(self, q: Tensor, p: Pass, index: int) -> Tensor:
        """Every chunk's queries over the tokens of its own prompt."""
        kernel, size = choose_kernel(q), q.shape[1] // len(p.chunks[0])
        rows = []
        for row, runs in zip(q.split(1), p.runs, strict=True):
            parts = row.split([count * size for _, count in runs], dim=1)
            pairs = [[x[None] for x in context.layers[index]] for context, _ in runs]
            rows.append(torch.cat([kernel(x, Group(slice(None), *kv)) for x, kv in zip(parts, pairs, strict=True)], 1))
        return torch.cat(rows)


class Mlp(nn.Module):
    """GELU, or SwiGLU."""

    def __init__(self, spec: MagiSpec, linears: Linears):
        super().__init__()
        self.gated = spec.gated
        self.layer_norm = nn.LayerNorm(spec.width, eps=spec.eps)
        self.linear_fc1 = linears.plain(spec.width, spec.ffn * (2 if spec.gated else 1))
        self.linear_fc2 = linears.last(spec.ffn, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear_fc1(self.layer_norm(x))
        if not self.gated:
            return self.linear_fc2(F.gelu(y))
        a, b = y.chunk(2, dim=-1)
        return self.linear_fc2(F.silu(a) * b)


class Gates(nn.Module):
    """A chunk's condition -> the gates of its attention and of its MLP, in (-1, 1)."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(spec.condition_width, 2 * spec.width))

    def forward(self, condition: Tensor) -> list[Tensor]:
        """[N, c, C] -> two of [N, c, D]."""
        gates = self.proj(F.silu(condition))
        return list(gates.float().tanh().to(gates.dtype).chunk(2, dim=-1))


class Layer(nn.Module):
    """One transformer block. What a gate has scaled is normed before it joins the residual stream."""

    def __init__(self, spec: MagiSpec, index: int):
        super().__init__()
        self.index = index
        linears = Linears.of(spec, index)
        self.ada_modulate_layer = Gates(spec)
        self.self_attention = Attention(spec, linears)
        self.self_attn_post_norm = CenteredNorm(spec.width, spec.eps)
        self.mlp = Mlp(spec, linears)
        self.mlp_post_norm = CenteredNorm(spec.width, spec.eps)

    def forward(self, x: Tensor, p: Pass) -> Tensor:
        """Tokens [N, F S, D] -> tokens."""
        attention, mlp = self.ada_modulate_layer(p.condition)
        x = joined(x, self.self_attention(x, p, self.index), attention, self.self_attn_post_norm)
        return joined(x, self.mlp(x), mlp, self.mlp_post_norm)


def joined(x: Tensor, y: Tensor, gate: Tensor, norm: nn.Module) -> Tensor:
    """x + norm(y * gate) of tokens [N, F S, D] under their chunks' gates [N, c, D], in float32, in x's precision."""
    scaled = y.float().unflatten(1, (gate.shape[1], -1)) * gate.float().unsqueeze(2)
    return (norm(scaled.flatten(1, 2)) + x).to(x.dtype)
