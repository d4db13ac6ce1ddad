"""The two transformers of MAGI-1's VAE: patches of pixels -> latents, latents -> patches of pixels.

Each sees one tile of a clip, all of it at once: attention is over every patch of the tile and one class token. Layers
carry the published names. Source: SandAI-org/MAGI-1, inference/model/vae/vae_module.py. Does not know tiles, clips or
what latents are scaled by.

Shapes: B tiles, C latent channels, t h w a tile's latents, T H W its frames and pixels, S = 1 + t h w tokens, D width,
heads h, d head width.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from engine.published import MagiVaeSpec

EPS = 1e-5
Grid = tuple[int, int, int]


class Encoder(nn.Module):
    """[B, 3, T, H, W] in [-1, 1] -> means of latents [B, C, t, h, w]; frames past the last whole patch are dropped."""

    def __init__(self, spec: MagiVaeSpec):
        super().__init__()
        self.channels, self.grid = spec.channels, spec.grid
        self.patch_embed = Patches(spec)
        self.cls_token, self.pos_embed = tables(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width, EPS)
        self.last_layer = nn.Linear(spec.width, 2 * spec.channels)

    def forward(self, video: Tensor) -> Tensor:
        x = self.patch_embed(video)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = with_class(rearrange(x, "b d t h w -> b (t h w) d"), self.cls_token)
        x = x + positions(self.pos_embed, self.grid, grid)
        for block in self.blocks:
            x = block(x)
        # The other half of the outputs is the logarithm of the variance, and nothing is sampled.
        means = self.last_layer(self.norm(x[:, 1:]))[..., : self.channels]
        return rearrange(means, "b (t h w) c -> b c t h w", t=grid[0], h=grid[1], w=grid[2])


class Decoder(nn.Module):
    """Latents [B, C, t, h, w] -> [B, 3, T, H, W], about -1 to 1 and not clamped."""

    def __init__(self, spec: MagiVaeSpec):
        super().__init__()
        self.grid, self.scale, self.rate = spec.grid, spec.scale, spec.frames_per_latent
        if spec.width % spec.patch:
            raise ValueError(f"width {spec.width} must divide into the {spec.patch} pixels of a patch")
        self.proj_in = nn.Linear(spec.channels, spec.width)
        self.cls_token, self.pos_embed = tables(spec)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width, EPS)
        self.last_layer = nn.Conv3d(spec.width // spec.patch, 3, kernel_size=3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        grid = (z.shape[2], z.shape[3], z.shape[4])
        x = with_class(self.proj_in(rearrange(z, "b c t h w -> b (t h w) c")), self.cls_token)
        x = x + positions(self.pos_embed, self.grid, grid)
        for block in self.blocks:
            x = block(x)
        sizes = {"t": grid[0], "h": grid[1], "w": grid[2], "r": self.rate, "p": self.scale, "q": self.scale}
        x = rearrange(self.norm(x[:, 1:]), "b (t h w) (r p q c) -> b c (t r) (h p) (w q)", **sizes)
        return self.last_layer(x)


class Patches(nn.Module):
    """[B, 3, T, H, W] -> [B, D, t, h, w]."""

    def __init__(self, spec: MagiVaeSpec):
        super().__init__()
        size = (spec.frames_per_latent, spec.scale, spec.scale)
        self.proj = nn.Conv3d(3, spec.width, kernel_size=size, stride=size)

    def forward(self, video: Tensor) -> Tensor:
        return self.proj(video)


class Block(nn.Module):
    """x + attention(x), which normalises by itself, then x + MLP(LN(x)); [B, S, D]."""

    def __init__(self, spec: MagiVaeSpec):
        super().__init__()
        self.attn = Attention(spec.width, spec.heads)
        self.norm2 = nn.LayerNorm(spec.width, EPS)
        self.mlp = Mlp(spec.width, spec.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Every token sees every token; queries, keys and values are standardised head by head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = standardised(rearrange(self.qkv(x), "b s (n h d) -> n b h s d", n=3, h=self.heads))
        return self.proj(rearrange(F.scaled_dot_product_attention(*qkv), "b h s d -> b s (h d)"))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def standardised(x: Tensor) -> Tensor:
    """(x - mean) / (std + eps) over the last axis, the deviation biased; computed in float32."""
    variance, mean = torch.var_mean(x.float(), dim=-1, correction=0, keepdim=True)
    return ((x.float() - mean) / (variance.sqrt() + EPS)).to(x.dtype)


def tables(spec: MagiVaeSpec) -> tuple[nn.Parameter, nn.Parameter]:
    """The class token [1, 1, D] and the positions of it and the trained grid [1, 1 + t h w, D]."""
    token, table = torch.empty(1, 1, spec.width), torch.empty(1, 1 + prod(spec.grid), spec.width)
    for x in (token, table):
        nn.init.trunc_normal_(x, std=0.02)
    return nn.Parameter(token), nn.Parameter(table)


def with_class(x: Tensor, token: Tensor) -> Tensor:
    """[B, S - 1, D] -> [B, S, D]: the class token first."""
    return torch.cat([token.expand(len(x), -1, -1), x], dim=1)


def positions(table: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """[1, S, D]: the class token's position, and those of the trained grid, interpolated to this one in float32."""
    if grid == trained:
        return table
    places = rearrange(table[:, 1:].float(), "b (t h w) d -> b d t h w", t=trained[0], h=trained[1], w=trained[2])
    places = F.interpolate(places, size=grid, mode="trilinear", align_corners=False)
    return torch.cat([table[:, :1], rearrange(places, "b d t h w -> b (t h w) d").to(table.dtype)], dim=1)
