"""MagiDiT: the denoiser of MAGI-1 (Sand AI, 2025): chunks of latent frames in flight, each at its own noise level.

Time runs from 0, pure noise, to 1, and the prediction is the velocity toward the clean latent. A chunk's time, step
size and dropped prompt make two tanh gates a layer; its prompt is read by cross-attention beside self-attention. It
does not know ranges of keys, caches, guidance, or which of the published models it is: a spec says what it is made of.

Legend: N worlds, c chunks in flight, F latent frames, C H W latent, S tokens of a frame, D width, T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from engine.conditioning import Condition, Context
from engine.models.magi_embeddings import PromptEmbedding, Rope, TimeEmbedding
from engine.models.magi_layers import CenteredNorm, Layer, Pass, plain_linear
from engine.models.matrix_game import View
from engine.models.seam import WHOLE, Seam
from engine.published import MagiSpec


class Blocks(nn.Module):
    """The transformer."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.layers = nn.ModuleList(Layer(spec, i) for i in range(spec.layers))
        self.final_layernorm = CenteredNorm(spec.width, spec.eps)

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        """Tokens [N, F S, D] -> float32 tokens."""
        for layer in self.layers:
            x = layer(x, shared)
        return self.final_layernorm(x)


class Final(nn.Module):
    """The projection to patches."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.linear = plain_linear(spec.width, spec.out_channels * spec.patch**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class MagiDiT(nn.Module):
    """`(latents, times, positions, condition, view) -> prediction, features` (see `forward`)."""

    def __init__(self, spec: MagiSpec):
        super().__init__()
        self.spec = spec
        self.seam: Seam = WHOLE
        self.x_embedder = plain_linear(spec.in_channels * spec.patch**2, spec.width)
        self.t_embedder = TimeEmbedding(spec)
        self.y_embedder = PromptEmbedding(spec)
        self.rope = Rope(spec)
        self.videodit_blocks = Blocks(spec)
        self.final_linear = Final(spec)

    @property
    def layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.videodit_blocks.layers))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the tokens; some parameters stay float32 (see `magi_layers.island`)."""
        return self.layers[0].mlp.layer_norm.weight.dtype

    def forward(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: View
    ) -> tuple[Tensor, Tensor]:
        """Predict the velocity x0 - noise of noisy latents.

        Args:
            latents: [N, F, C, H, W], c chunks of F / c latent frames, oldest first; H and W multiples of the patch.
            times: in [0, 1] of each latent frame, [N, F]; one for all frames of a chunk.
            positions: integer latent frame positions [N, F].
            condition: the prompt that each chunk reads (`chunks`, none of them None), which of them are told that their
                prompt was dropped (`dropped`; by default none), and of distilled models the `step_size`.
            view: the histories, and where the chunks' K/V go: stream "self". Its layers get keys [N, F S, kv_heads, d],
                turned, and queries [N, F S g, kv_heads, d]: the g that share a kv head one after another, so that a
                token's queries, a frame's and a chunk's each lie in one piece.

        Returns:
            prediction float32 [N, F, C, H, W] and features [N, F, S, D], the tokens before the last projection.
        """
        chunks = prompts(condition)
        check_call(self.spec, latents, times, chunks, condition.step_size)
        patch, frames = self.spec.patch, latents.shape[1]
        grid = (latents.shape[3] // patch, latents.shape[4] // patch)
        steer = self._steer(times[:, :: frames // len(chunks[0])], condition)
        shared = Pass(steer, self.rope(positions, grid, self.seam), view, chunks)
        tokens = self.videodit_blocks(self._patches(latents), shared)
        features = tokens.unflatten(1, (frames, -1))
        out = self.seam.join(self.final_linear(features), 2)
        out = rearrange(out, "n f (y x) (p q c) -> n f c (y p) (x q)", y=grid[0], p=patch, q=patch)
        return out[:, :, : self.spec.latent_channels] / self.spec.rescale, features

    def contextualise(self, text: Tensor) -> Context:
        """What every layer reads of a prompt; computed once, and shared by all chunks and worlds that have it.

        Args:
            text: embeddings [T, text_width] of the tokens that are read, 1 to text_tokens of them.

        Raises:
            ValueError: none, too many, or of another width.
        """
        check_text(self.spec, text)
        weight = self.y_embedder.null_caption_embedding
        tokens = self.y_embedder(text[None].to(weight)).to(self.dtype)
        layers = tuple(tuple(x[0] for x in layer.self_attention.read(tokens)) for layer in self.layers)
        return Context(layers, None, {"text": text})

    def _patches(self, latents: Tensor) -> Tensor:
        """Latents [N, F, C, H, W] -> tokens [N, F S, D]."""
        x, p = latents.float() * self.spec.rescale, self.spec.patch
        if self.spec.doubled:
            x = torch.cat([x, x], dim=2)
        patches = self.seam.cut(rearrange(x, "n f c (y p) (x q) -> n f (y x) (c p q)", p=p, q=p), 2)
        return self.x_embedder(patches.flatten(1, 2)).to(self.dtype)

    def _steer(self, times: Tensor, condition: Condition) -> Tensor:
        """The condition of each chunk [N, c, C] at times [N, c]."""
        steer = self.t_embedder(times, self.dtype)
        if condition.step_size is not None:
            size = torch.tensor([[condition.step_size]], device=times.device)
            steer = steer + self.t_embedder(size, self.dtype)
        dropped = times.new_zeros(times.shape) if condition.dropped is None else condition.dropped
        return (steer + self.y_embedder.dropped(dropped.bool())).to(self.dtype)


def prompts(condition: Condition) -> list[list[Context]]:
    """What each chunk of each world reads.

    Raises:
        ValueError: a chunk reads nothing, not even the text of no prompt.
    """
    rows = [[context for context in row if context is not None] for row in condition.chunks]
    if [len(row) for row in rows] != [len(row) for row in condition.chunks]:
        raise ValueError("a chunk has no prompt: give it the context of the null text")
    return rows


def check_call(
    spec: MagiSpec, latents: Tensor, times: Tensor, chunks: Sequence[Sequence[Context]], step_size: float | None
) -> None:
    """Raises ValueError unless sizes fit the model and one another."""
    n, frames, channels, *sides = latents.shape
    if channels != spec.latent_channels or any(side % spec.patch for side in sides):
        raise ValueError(
            f"latents have the shape {tuple(latents.shape)}: expected [N, F, {spec.latent_channels}, H, W] with H and "
            f"W multiples of {spec.patch}"
        )
    counts = [len(row) for row in chunks]
    if len(counts) != n or len(set(counts)) != 1 or not counts[0] or frames % counts[0] or times.shape[1] != frames:
        raise ValueError(
            f"{counts} prompts and times {list(times.shape)} for latents of {n} worlds and {frames} frames: expected a "
            "prompt of each chunk of each world, as many for all, a time of each frame, and chunks of one length"
        )
    if (step_size is not None) != spec.distill:
        raise ValueError(f"step size {step_size}: expected {'one' if spec.distill else 'none'}, distill={spec.distill}")


def check_text(spec: MagiSpec, text: Tensor) -> None:
    """Raises ValueError unless these are embeddings of a prompt."""
    if text.ndim != 2 or text.shape[1] != spec.text_width or not 0 < len(text) <= spec.text_tokens:
        raise ValueError(
            f"text embeddings have the shape {tuple(text.shape)}: expected [1 to {spec.text_tokens}, {spec.text_width}]"
        )


def flops(spec: MagiSpec, tokens_per_frame: int, frames: int, keys: int, text_tokens: int) -> int:
    """Floating-point operations (2 a multiply-add) of one pass of one world: products and attention, nothing else.

    Args:
        tokens_per_frame: S, H W / patch^2 of a latent.
        frames: latent frames in flight.
        keys: latent frames that every one of them sees, on average over the chunks, itself included.
        text_tokens: of a prompt.
    """
    queries, wide, narrow = frames * tokens_per_frame, spec.heads * spec.head_width, spec.kv_heads * spec.head_width
    first = spec.ffn * (2 if spec.gated else 1)
    linears = queries * spec.width * (2 * wide + 2 * narrow + 2 * wide + first + spec.ffn)
    attention = 2 * queries * wide * (keys * tokens_per_frame + text_tokens)
    patches = queries * spec.width * (spec.in_channels + spec.out_channels) * spec.patch**2
    return 2 * (spec.layers * (linears + attention) + patches)
