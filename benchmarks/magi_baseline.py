"""The published rollout of MAGI-1, to compare the engine with: what its code does, step by step.

Written from a description of that code's inference, to the same weights: eager, one run after another for each
prediction that guidance asks for, the K/V of the whole video on the host and copied to the device in every layer of
every run, one attention a chunk, a prompt's embedding, its keys and values and every gate made anew in every layer of
every run, the attention's projection in float32, and a codec that decodes one tile at a time. Of its fused kernels
(rotary, gates, SwiGLU) there are plain ones; of its attention PyTorch's.

Computes what engine/models/magi.py and magi_guidance.py compute; knows neither pool, views nor stages.

Legend: c chunks in flight, w latent frames of one, C H W latent, S tokens in flight, D width, h heads, k kv heads, d
head width, T tokens of a text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.codecs.magi_vae import MagiVae
from engine.models.magi import MagiDiT
from engine.models.magi_layers import Layer
from engine.published import Staggered
from engine.stages import step_sizes, times, weights_at

Range = tuple[int, int]
NoiseOf = Callable[[int, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Flight:
    """What one run of the denoiser is of.

    Attributes:
        texts: of each chunk, embeddings [T, D].
        ranges: first chunk that each of them sees, and the one behind the last, counted from the video's start.
        first: chunk at which they begin.
        dropped: they are told that their prompt was dropped.
        size: of the step, told to distilled models.
        writes: chunks whose keys and values are written to the cache.
        copied: the last of them is the oldest noisy one once more, and sees itself alone.
    """

    texts: list[Tensor]
    ranges: list[Range]
    first: int
    dropped: bool
    size: float | None
    writes: int = 0
    copied: bool = False


class Cache:
    """Keys and values [tokens, k, 2 d] of every layer, of the whole video, on the host."""

    def __init__(self, model: MagiDiT, tokens: int):
        spec, weight = model.spec, model.layers[0].mlp.layer_norm.weight
        shape, pin = (tokens, spec.kv_heads, 2 * spec.head_width), weight.is_cuda
        self.device = weight.device
        self.layers = [torch.zeros(shape, dtype=weight.dtype, pin_memory=pin) for _ in range(spec.layers)]

    def read(self, layer: int, stop: int) -> Tensor:
        """All before a token, copied to the device."""
        return self.layers[layer][:stop].to(self.device)

    def write(self, layer: int, start: int, kv: Tensor) -> None:
        self.layers[layer][start : start + len(kv)].copy_(kv)


class Baseline:
    """One video of so many chunks, as the published code makes it.

    Args:
        model: whose weights are used; nothing is copied.
        width: latent frames of a chunk.
        text, null: embeddings [T, D] of the prompt, and of none.
        noise: draws a chunk's by its number and shape.
        chunks: of the video.
        behind: of these, those that are taken to have been made before; their keys and values are zeros.
    """

    def __init__(
        self,
        model: MagiDiT,
        rollout: Staggered,
        width: int,
        latent: tuple[int, int, int],
        text: Tensor,
        null: Tensor,
        noise: NoiseOf,
        chunks: int,
        behind: int = 0,
    ):
        self.model, self.rollout, self.width, self.latent = model, rollout, width, latent
        self.text, self.null, self.noise = text, null, noise
        self.tokens = width * latent[1] * latent[2] // model.spec.patch**2  # of a chunk
        self.chunks, self.behind, self.stage = chunks, behind, 0
        self.cache = Cache(model, chunks * self.tokens)
        self.steps, self.table = rollout.num_steps // rollout.window, times(rollout)
        self.state: dict[int, Tensor] = {}

    @torch.inference_mode()
    def step(self) -> Tensor:
        """The latents [w, C, H, W] of the next chunk."""
        for _ in range(self.rollout.window if self.stage == 0 else 1):
            self._stage()
        return self.state[self.behind + self.stage - self.rollout.window]

    def _stage(self) -> None:
        """Passes until a chunk is finished, or the next could enter."""
        entering = self.behind + self.stage
        shape = (self.width, *self.latent)
        self.state[entering] = self.noise(self.stage, shape).to(self.cache.device)
        flying = list(range(max(self.behind, entering - self.rollout.window + 1), entering + 1))
        finished = [flying[0] - 1] if self.stage >= self.rollout.window else []
        for j in range(self.steps):
            self._pass(finished if j == 0 else [], flying, [(entering - i) * self.steps + j for i in flying], j)
        self.stage += 1

    def _pass(self, finished: list[int], flying: list[int], indices: list[int], j: int) -> None:
        """One step of every chunk in flight; a finished one goes before them, for its keys and values."""
        rollout = self.rollout
        seen = [self._range(i, rollout.range_at(n)) for i, n in zip(flying, indices, strict=True)]
        ranges = [*(self._range(i, rollout.clean_range) for i in finished), *seen]
        x = torch.cat([self.state[i] for i in [*finished, *flying]])
        told = torch.cat([torch.full((len(finished),), rollout.clean_time), self.table[indices]])
        velocity = self._guided(x, told, ranges, [*finished, *flying][0], len(finished), j)
        for place, (i, n) in enumerate(zip(flying, indices, strict=True), start=len(finished)):
            v = velocity[place * self.width : (place + 1) * self.width]
            self.state[i] = self.state[i] + v * (self.table[n + 1] - self.table[n]).to(v.device)

    def _range(self, chunk: int, reach: int | None) -> Range:
        return (0 if reach is None else max(0, chunk + 1 - reach), chunk + 1)

    def _guided(self, x: Tensor, told: Tensor, ranges: list[Range], first: int, lead: int, j: int) -> Tensor:
        """The velocity of all chunks, from three predictions or one."""
        count, writes = len(ranges), len(ranges) if first > 0 or lead else 0
        prompted = [self.null] * lead + [self.text] * (count - lead)
        if self.rollout.guidance is None:
            return self._distilled(
                x, told, Flight(prompted, ranges, first, False, step_sizes(self.rollout)[j], writes), lead
            )
        a = self.run(x, told, Flight(prompted, ranges, first, False, None))
        b = self.run(x, told, Flight([self.null] * count, ranges, first, True, None, writes))
        begin = lead * self.width
        c = [
            self.run(part, told[lead + i : lead + i + 1], Flight([self.null], [(0, 1)], 0, True, None))
            for i, part in enumerate(x[begin:].split(self.width))
        ]
        alone = torch.cat([b[:begin], *c])
        pairs = torch.tensor([weights_at(float(t), self.rollout.guidance) for t in told], device=x.device)
        p, w = pairs.repeat_interleave(self.width, 0)[:, :, None, None, None].unbind(1)
        return (1 - p) * alone + (p - w) * b + w * a

    def _distilled(self, x: Tensor, told: Tensor, flight: Flight, lead: int) -> Tensor:
        """One prediction; a nearly clean chunk's is mixed with what it says alone."""
        if float(told[lead]) <= self.rollout.near_clean:
            return self.run(x, told, flight)
        own = slice(lead * self.width, (lead + 1) * self.width)
        last = flight.first + len(flight.ranges)
        more = Flight(
            [*flight.texts, flight.texts[lead]],
            [*flight.ranges, (last, last + 1)],
            flight.first,
            False,
            flight.size,
            flight.writes,
            True,
        )
        made = self.run(torch.cat([x, x[own]]), torch.cat([told, told[lead : lead + 1]]), more)
        velocity, weight = made[: -self.width].clone(), self.rollout.near_clean_weight
        velocity[own] = weight * velocity[own] + (1 - weight) * made[-self.width :]
        return velocity

    def run(self, x: Tensor, told: Tensor, flight: Flight) -> Tensor:
        """One run of the denoiser over latents [c w, C, H, W] at times [c]; writes the cache where it should."""
        model, spec = self.model, self.model.spec
        y = x.float() * spec.rescale
        y = torch.cat([y, y], dim=1) if spec.doubled else y
        weight = model.x_embedder.weight.view(spec.width, -1, spec.patch, spec.patch)
        tokens = F.conv2d(y, weight, stride=spec.patch)
        grid = (tokens.shape[2], tokens.shape[3])
        hidden = tokens.flatten(2).transpose(1, 2).flatten(0, 1).to(model.dtype)
        condition = self._condition(told.to(x.device), flight)
        turns = self._turns(len(x), flight.first * self.width, grid)
        texts = [F.silu(model.y_embedder.y_proj_xattn[0](t.to(x.device).float())).to(model.dtype) for t in flight.texts]
        for i, layer in enumerate(model.layers):
            hidden = self._layer(i, layer, hidden, condition, turns, texts, flight)
        norm = model.videodit_blocks.final_layernorm
        out = model.final_linear.linear(plus_one(norm, hidden.float()))
        out = out.view(len(x), *grid, spec.patch, spec.patch, -1).permute(0, 5, 1, 3, 2, 4)
        return out.reshape(len(x), -1, *x.shape[2:])[:, : spec.latent_channels] / spec.rescale

    def _condition(self, told: Tensor, flight: Flight) -> Tensor:
        """[c, C] of times, the step's size and whether the prompt was dropped."""
        model = self.model
        embed, weight = model.t_embedder.mlp, model.y_embedder.null_caption_embedding
        steer = embed(self._sinusoid(told))
        if flight.size is not None:
            steer = steer + embed(self._sinusoid(torch.full((1,), flight.size, device=told.device)))
        text = model.y_embedder.y_proj_adaln[0](weight[-1] if flight.dropped else weight[-2])
        return (steer + text).to(model.dtype)

    def _sinusoid(self, values: Tensor) -> Tensor:
        half = self.model.spec.frequencies // 2
        powers = -math.log(10_000) * torch.arange(half, dtype=torch.float32) / half
        rates = powers.double().exp().float().to(values.device)  # as the engine: float32's exp is each processor's own
        angles = values.float()[:, None] * rates * 1000
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.model.dtype).float()

    def _turns(self, frames: int, first: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sines and cosines [S, 1, 3 bands]: of all frames from the video's start, of which the last are taken."""
        bands = self.model.rope.bands.float()
        scale = math.sqrt(grid[0] * grid[1] / 256)
        axes = [torch.arange(first + frames, device=bands.device, dtype=torch.float32)]
        for size in grid:
            places = torch.arange(size, device=bands.device) - (size - 1) / 2
            axes.append(places * ((size / scale - 1) / max(1, size - 1)))
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
        angles = (places[:, :, None] * bands).flatten(1)[first * grid[0] * grid[1] :]
        return angles.sin()[:, None], angles.cos()[:, None]

    def _layer(
        self,
        i: int,
        layer: Layer,
        x: Tensor,
        condition: Tensor,
        turns: tuple[Tensor, Tensor],
        texts: list[Tensor],
        flight: Flight,
    ) -> Tensor:
        """Tokens [S, D] -> tokens."""
        gates = torch.tanh(layer.ada_modulate_layer.proj[0](F.silu(condition)).float()).to(x.dtype)
        attention, mlp = gates.chunk(2, dim=-1)
        x = gated(x, self._attention(i, layer, x, turns, texts, flight), attention, layer.self_attn_post_norm)
        y = layer.mlp.linear_fc1(layer.mlp.layer_norm(x))
        if layer.mlp.gated:
            a, b = y.chunk(2, dim=-1)
            y = F.silu(a) * b
        else:
            y = F.gelu(y)
        return gated(x, layer.mlp.linear_fc2(y), mlp, layer.mlp_post_norm)

    def _attention(
        self, i: int, layer: Layer, x: Tensor, turns: tuple[Tensor, Tensor], texts: list[Tensor], flight: Flight
    ) -> Tensor:
        attn, d = layer.self_attention, self.model.spec.head_width
        normed = attn.linear_qkv.layer_norm(x)
        q, qx, k, v = (
            linear(normed).unflatten(-1, (-1, d))
            for linear in (attn.linear_qkv.q, attn.linear_qkv.qx, attn.linear_qkv.k, attn.linear_qkv.v)
        )
        q, k = (
            turned(plus_one(norm, y.float()), turns).to(x.dtype)
            for norm, y in zip((attn.q_layernorm, attn.k_layernorm), (q, k), strict=True)
        )
        keys, values, start = self._with_history(i, torch.cat([k, v], dim=-1), flight)
        own, size = [], self.tokens
        for n, (first, last) in enumerate(flight.ranges):
            part = slice(n * size, (n + 1) * size)
            seen = slice((first - start) * size, (last - start) * size)
            own.append(attend(q[part], keys[seen], values[seen]))
        crossed = self._crossed(attn, plus_one(attn.q_layernorm_xattn, qx), texts)
        both = torch.stack([y.flatten(1).unflatten(-1, (8, -1)) for y in (torch.cat(own), crossed)], dim=2)
        return F.linear(both.flatten(1).float(), attn.linear_proj.weight.float())

    def _with_history(self, i: int, kv: Tensor, flight: Flight) -> tuple[Tensor, Tensor, int]:
        """Keys and values from the video's start on, and the chunk at which they begin; alone without any."""
        start = flight.first * self.tokens
        if flight.writes:
            self.cache.write(i, start, kv[: flight.writes * self.tokens])
        whole = torch.cat([self.cache.read(i, start), kv]) if start else kv
        keys, values = whole.chunk(2, dim=-1)
        return keys, values, 0

    def _crossed(self, attn: torch.nn.Module, q: Tensor, texts: list[Tensor]) -> Tensor:
        """Every chunk's queries over the tokens of its own text, whose keys and values are made for each chunk."""
        spec, made = self.model.spec, []
        for part, text in zip(q.split(self.tokens), texts, strict=True):
            kv = attn.linear_kv_xattn(text).unflatten(-1, (spec.kv_heads, 2, spec.head_width))
            keys, values = kv.unbind(2)
            made.append(attend(part, plus_one(attn.k_layernorm_xattn, keys), values))
        return torch.cat(made)


def plus_one(norm: torch.nn.Module, x: Tensor) -> Tensor:
    """LayerNorm whose stored weight is its scale less one."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight + 1, norm.bias, norm.eps)


def gated(x: Tensor, y: Tensor, gates: Tensor, norm: torch.nn.Module) -> Tensor:
    """x + norm(y * gate) of tokens [S, D] under their chunks' gates [c, D]."""
    rows = torch.arange(len(gates), device=x.device).repeat_interleave(len(x) // len(gates))
    return (plus_one(norm, y.float() * gates[rows].float()) + x).to(x.dtype)


def turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """[S, heads, d] turned by position: the first half of the turning channels with the second."""
    sin, cos = turns
    half = sin.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[S, h, d] over [T, k, d], every kv head for the same number of heads."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)


def one_by_one(vae: MagiVae) -> MagiVae:
    """The same codec, which decodes one tile at a time."""
    made = copy.copy(vae)
    made.tiles_at_once = 1
    return made
