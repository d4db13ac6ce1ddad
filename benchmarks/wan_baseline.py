"""The published rollout of a Wan2.1 few-step model, to compare the engine with: what its code does, step by step.

Written from a description of Self-Forcing's inference, to the same weights: eager, a bf16 residual stream, a rotary
table of 1024 positions multiplied in complex128 in every layer, a KV cache of one tensor a layer that is moved down
when it is full, counters on the device that the host reads in every layer, the prompt's MLP in every pass, keys and
values of the prompt kept, and a codec that decodes one latent at a time from caches joined by cat and pad.

Computes what engine/models/wan.py and engine/codecs/wan_vae.py compute; knows neither pool, views nor schedules.

Legend: N worlds, F latent frames of a block, C H W latent, S tokens of a frame, D width, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.codecs.wan_vae import WanVae, statistics
from engine.codecs.wan_vae_layout import diffusers_names
from engine.models.wan import WanDiT
from engine.models.wan_layers import CrossAttention, Layer, SelfAttention
from engine.published import Rollout
from engine.schedule import shifted, timesteps

POSITIONS = 1024  # of the published rotary table
NoiseOf = Callable[[int, int, tuple[int, ...]], Tensor]


def rotary_table(width: int) -> Tensor:
    """complex128 [1024, width / 2]: the turns of three axes side by side, each of frequencies of its own width."""
    axes = (width - 4 * (width // 6), 2 * (width // 6), 2 * (width // 6))
    rates = [10_000.0 ** -(torch.arange(0, axis, 2, dtype=torch.float64) / axis) for axis in axes]
    angles = [torch.outer(torch.arange(POSITIONS, dtype=torch.float64), rate) for rate in rates]
    return torch.cat([torch.polar(torch.ones_like(a), a) for a in angles], dim=1)


def rotate(x: Tensor, grid: tuple[int, int, int], table: Tensor, start: int) -> Tensor:
    """Turn [N, F S, h, d], frames from `start` on; world by world, the turns put together anew for each."""
    frames, rows, columns = grid
    half = x.shape[-1] // 2
    time, *space = table.split([half - 2 * (half // 3), half // 3, half // 3], dim=1)
    made = []
    for one in x:
        pairs = torch.view_as_complex(one.double().unflatten(-1, (-1, 2)))
        turns = torch.cat(
            [
                time[start : start + frames].view(frames, 1, 1, -1).expand(*grid, -1),
                space[0][:rows].view(1, rows, 1, -1).expand(*grid, -1),
                space[1][:columns].view(1, 1, columns, -1).expand(*grid, -1),
            ],
            dim=-1,
        ).reshape(frames * rows * columns, 1, -1)
        made.append(torch.view_as_real(pairs * turns).flatten(2))
    return torch.stack(made).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[N, tokens, h, d] -> the same, by PyTorch's fused kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()


class Cache:
    """Keys and values of one layer, moved down when they are full, and its two counters, which lie on the device."""

    def __init__(self, n: int, size: int, heads: int, width: int, like: Tensor, sink: int):
        self.keys, self.values = (like.new_zeros(n, size, heads, width) for _ in range(2))
        self.written = torch.zeros(1, dtype=torch.long, device=like.device)
        self.end = torch.zeros(1, dtype=torch.long, device=like.device)
        self.size, self.sink = size, sink

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write a block that begins at token `start`, and show all there is."""
        new, stop = k.shape[1], start + k.shape[1]
        if stop > self.written.item() and new + self.end.item() > self.size:
            surplus = int(new + self.end.item() - self.size)
            kept = int(self.end.item()) - surplus - self.sink
            for x in (self.keys, self.values):
                moved = x[:, self.sink + surplus : self.sink + surplus + kept].clone()
                x[:, self.sink : self.sink + kept] = moved
            end = int(self.end.item() + stop - self.written.item()) - surplus
        else:
            end = int(self.end.item() + stop - self.written.item())
        self.keys[:, end - new : end], self.values[:, end - new : end] = k, v
        self.written.fill_(stop)
        self.end.fill_(end)
        return self.keys[:, :end], self.values[:, :end]


class Baseline:
    """N worlds in step with each other, as the published code runs them.

    Args:
        denoiser: whose weights are used; nothing is copied.
        window, sink: latent frames of the cache, the block's among them, and of these the first that stay.
        text: the prompt's embeddings [T, text width].
        noise: draws normal noise by (block, draw, shape).
    """

    def __init__(
        self, denoiser: WanDiT, rollout: Rollout, window: int, sink: int, text: Tensor, noise: NoiseOf, worlds: int = 1
    ):
        self.model, self.rollout, self.window, self.sink = denoiser, rollout, window, sink
        self.like = denoiser.head.modulation
        self.text, self.noise, self.n = text.to(self.like), noise, worlds
        self.table = rotary_table(denoiser.spec.head_width).to(self.like.device)
        self.sigmas = shifted(rollout).to(self.like.device)
        self.caches: list[Cache] = []
        self.prompts: list[tuple[Tensor, Tensor] | None] = [None] * denoiser.spec.layers
        self.block = self.frames = 0

    @torch.inference_mode()
    def step(self, frames: int, latent: tuple[int, int, int]) -> Tensor:
        """The clean latents [N, F, C, H, W] of the next block."""
        shape = (self.n, frames, *latent)
        x = self.noise(self.block, 0, shape).to(self.like)
        told, clean = timesteps(self.rollout), x
        for i, t in enumerate(told):
            flow = self.denoise(x, torch.full(shape[:2], t, device=x.device))
            clean = self.to_clean(flow, x, t)
            if i + 1 < len(told):
                x = self.add_noise(clean, self.noise(self.block, i + 2, shape).to(x), told[i + 1])
        self.denoise(clean, torch.full(shape[:2], self.rollout.context, device=x.device))
        self.block, self.frames = self.block + 1, self.frames + frames
        return clean

    def sigma(self, t: float) -> Tensor:
        """The noise level of the training step nearest to a timestep, looked up on the device."""
        told = torch.full((1,), t, dtype=torch.float64, device=self.like.device)
        nearest = (self.sigmas.double() * self.rollout.training_steps - told[:, None]).abs().argmin(1)
        return self.sigmas[nearest].view(-1, 1, 1, 1, 1)

    def to_clean(self, flow: Tensor, x: Tensor, t: float) -> Tensor:
        return (x.double() - self.sigma(t).double() * flow.double()).to(flow.dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        sigma = self.sigma(t)
        return ((1 - sigma) * clean + sigma * noise).to(noise.dtype)

    def denoise(self, latents: Tensor, times: Tensor) -> Tensor:
        """The flow [N, F, C, H, W] of latents at timesteps [N, F]; writes the caches."""
        model, spec = self.model, self.model.spec
        p = spec.patch
        weight = model.patch_embedding.weight.view(spec.width, spec.in_channels, 1, p, p)
        x = F.conv3d(latents.transpose(1, 2), weight, model.patch_embedding.bias, stride=(1, p, p))
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2)
        level = model.time_embedding(self.sinusoid(times).to(x.dtype))
        steer = model.time_projection(level).unflatten(-1, (6, -1))
        padded = torch.cat([self.text, self.text.new_zeros(spec.text_tokens - len(self.text), spec.text_width)])
        context = model.text_embedding(torch.stack([padded] * self.n))
        for i, layer in enumerate(cast("list[Layer]", list(model.blocks))):
            x = self.layer(i, layer, x, steer, context, grid)
        shift, scale = (model.head.modulation.unsqueeze(1) + level.unsqueeze(2)).chunk(2, dim=2)
        x = self.norm(x).unflatten(1, (grid[0], -1)) * (1 + scale) + shift
        return self.unpatchify(model.head.head(x), grid)

    def sinusoid(self, times: Tensor) -> Tensor:
        half = self.model.spec.frequencies // 2
        rates = torch.pow(10_000, -torch.arange(half, device=times.device).to(torch.float64).div(half))
        angles = torch.einsum("nf,k->nfk", times.double(), rates)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.model.spec.eps)

    def layer(self, i: int, layer: Layer, x: Tensor, steer: Tensor, context: Tensor, grid: tuple[int, int, int]):
        """Tokens [N, F S, D] -> tokens."""
        m = (layer.modulation.unsqueeze(1) + steer).chunk(6, dim=2)
        frames = (grid[0], -1)
        y = (self.norm(x).unflatten(1, frames) * (1 + m[1]) + m[0]).flatten(1, 2)
        y = self.self_attention(i, layer.self_attn, y, grid)
        x = x + (y.unflatten(1, frames) * m[2]).flatten(1, 2)
        x = x + self.cross_attention(i, layer.cross_attn, layer.norm3(x), context)
        y = layer.ffn((self.norm(x).unflatten(1, frames) * (1 + m[4]) + m[3]).flatten(1, 2))
        return x + (y.unflatten(1, frames) * m[5]).flatten(1, 2)

    def self_attention(self, i: int, attn: SelfAttention, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        tokens = grid[1] * grid[2]
        q, k = attn.split(attn.norm_q(attn.q(x))), attn.split(attn.norm_k(attn.k(x)))
        v = attn.split(attn.v(x))
        if len(self.caches) == i:
            size = self.window * tokens
            self.caches.append(Cache(self.n, size, attn.heads, q.shape[-1], v, self.sink * tokens))
        q, k = (rotate(y, grid, self.table, self.frames).type_as(v) for y in (q, k))
        keys, values = self.caches[i].extend(k, v, self.frames * tokens)
        return attn.o(attention(q, keys, values).flatten(2))

    def cross_attention(self, i: int, attn: CrossAttention, x: Tensor, context: Tensor) -> Tensor:
        q = attn.split(attn.norm_q(attn.q(x)))
        kept = self.prompts[i]
        if kept is None:
            kept = self.prompts[i] = (attn.split(attn.norm_k(attn.k(context))), attn.split(attn.v(context)))
        return attn.o(attention(q, *kept).flatten(2))

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[N, F, S, p p C] -> [N, F, C, H, W]."""
        p, c = self.model.spec.patch, self.model.spec.out_channels
        made = [torch.einsum("fhwpqc->fchpwq", y.reshape(*grid, p, p, c)) for y in x]
        return torch.stack([y.reshape(grid[0], c, grid[1] * p, grid[2] * p) for y in made])


class OneByOne:
    """The published way to decode: one latent at a time, caches joined by cat and pad, channels first in memory.

    By diffusers' AutoencoderKLWan where it is installed, else by the engine's VAE, latent by latent.
    """

    def __init__(self, vae: WanVae):
        self.vae = vae
        self.model = channels_first(vae)
        self.states: Any = None
        self.features: list[Any] = []

    @property
    def source(self) -> str:
        return "diffusers" if self.model is not None else "own VAE, latent by latent"

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [1, F, C, h, w] -> uint8 frames [1, T, H, W, 3]; goes on where the last call ended."""
        if self.model is None:
            return torch.cat([self._own(latent) for latent in latents.split(1, dim=1)], dim=1)
        mean, inverse = statistics(self.vae.mean, self.vae.std, latents.dtype, latents.device)
        z = (latents / inverse + mean).to(self.vae.dtype).transpose(1, 2).contiguous()
        z = self.model.post_quant_conv(z)
        made = [self._one(z[:, :, i : i + 1]) for i in range(z.shape[2])]
        video = torch.cat(made, dim=2).float().clamp(-1, 1)
        return ((video * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()

    def _own(self, latent: Tensor) -> Tensor:
        frames, self.states = self.vae.decode(latent, self.states)
        assert isinstance(frames, Tensor)
        return frames

    def _one(self, z: Tensor) -> Tensor:
        fresh = not self.features
        if fresh:
            self.model.clear_cache()
            self.features = self.model._feat_map
        return self.model.decoder(z, feat_cache=self.features, feat_idx=[0], first_chunk=fresh)


def channels_first(vae: WanVae) -> Any:
    """diffusers' VAE with the same weights; None where diffusers is not installed."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        return None
    spec = vae.spec
    with torch.device("meta"):
        model: Any = AutoencoderKLWan(
            base_dim=spec.width,
            z_dim=spec.channels,
            dim_mult=list(spec.multiples),
            num_res_blocks=spec.depth,
            temperal_downsample=list(vae.temporal),
        )
    names = diffusers_names(spec)
    weights = {names[name]: x.contiguous() for name, x in vae.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
