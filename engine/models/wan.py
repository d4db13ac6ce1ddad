"""WanDiT: the denoiser of the Wan2.1 family (Wan team, 2025): Self-Forcing, CausVid, LongLive, Matrix-Game 2.

adaLN from the timestep of each latent frame, query and key norms over the full width, rotary positions in three axes,
cross-attention to a prompt, an image, or both; Matrix-Game's action modules. It does not know ranks, caches,
schedules, or which of the published models it is: a spec says what it is made of.

Legend: N worlds, F latent frames, C H W latent, S tokens of a frame, D width, W frames' actions, A action encoding,
T tokens of a prompt or image, h heads, d head width.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from engine.conditioning import Condition, Context
from engine.models.matrix_game import Action, View, action_macs, action_rotary
from engine.models.rotary import Rotary, grid_turns
from engine.models.seam import WHOLE, Seam
from engine.models.wan_layers import Head, ImageEmbedding, Layer, Pass, sinusoid
from engine.published import WanSpec


class WanDiT(nn.Module):
    """`(latents, times, positions, condition, view) -> prediction, features` (see `forward`)."""

    def __init__(self, spec: WanSpec):
        super().__init__()
        self.spec = spec
        self.seam: Seam = WHOLE
        self.rotation = torch.float64 if spec.published else torch.float32
        width = spec.width
        self.patch_embedding = nn.Linear(spec.in_channels * spec.patch**2, width)
        if spec.text_tokens:
            self.text_embedding = nn.Sequential(
                nn.Linear(spec.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
            )
        if spec.image_tokens:
            self.img_emb = ImageEmbedding(spec)
        self.time_embedding = nn.Sequential(nn.Linear(spec.frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Layer(spec, i) for i in range(spec.layers))
        self.head = Head(spec)

    def forward(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: View
    ) -> tuple[Tensor, Tensor]:
        """Predict the velocity noise - x0 of noisy latents.

        Args:
            latents: [N, F, C, H, W]; H and W multiples of the patch.
            times: timestep in [0, 1000] of each latent frame, [N, F].
            positions: integer latent frame positions [N, F].
            condition: `context` of every layer (see `contextualise`); where the spec has them, channels `beside`
                the latents [N, F, c, H, W] and `actions` [N, F, W, A], keyboard before mouse.
            view: the histories, and where this block's K/V go: streams "self" and, of the layers that have an
                action module, "mouse" (S tokens a frame) and "keyboard" (one).

        Returns:
            prediction [N, F, out_channels, H, W] and features [N, F, S, D], the tokens before the last projection.
        """
        dtype, patch = self.head.modulation.dtype, self.spec.patch
        latents = self._beside(latents.to(dtype), condition)
        grid = (latents.shape[3] // patch, latents.shape[4] // patch)
        patches = rearrange(latents, "n f c (y p) (x q) -> n f (y x) (c p q)", p=patch, q=patch)
        x = self.patch_embedding(self.seam.cut(patches, 2))
        level = self.time_embedding(sinusoid(times, self.spec.frequencies).to(dtype))
        steer = self.time_projection(level).unflatten(-1, (6, -1))
        turns = partial(grid_turns, grid=grid, width=self.spec.head_width, base=self.spec.rope_base)
        rotary = Rotary(positions, turns, self.rotation, self.seam)
        shared = Pass(steer, rotary, view, self._action(condition, positions, dtype))
        for layer, context in zip(self.blocks, condition.context, strict=True):
            x = layer(x, context, shared)
        out, features = self.head(x, level)
        out = self.seam.join(out, 2)
        return rearrange(out, "n f (y x) (p q c) -> n f c (y p) (x q)", y=grid[0], p=patch, q=patch), features

    def contextualise(self, text: Tensor | None, image: Tensor | None, beside: Tensor | None = None) -> Context:
        """What every layer reads of a prompt, an image, or both; computed once, and shared by all worlds that have it.

        Args:
            text: a prompt's embeddings [T, text_width], T at most text_tokens. Zero rows are added up to
                text_tokens, and attended to: the models were trained with them.
            image: CLIP features [image_tokens, image_width].
            beside: channels [K, c, h, w] shown beside latent frames 0 .. K-1; kept as they are.

        Raises:
            ValueError: text or image is missing, too much, or of another size.
        """
        spec, given = self.spec, {"text": text, "image": image, "beside": beside}
        check_sequence("text", text, spec.text_tokens, spec.text_width, at_most=True)
        check_sequence("image", image, spec.image_tokens, spec.image_width)
        weight, sequences = self.head.modulation, []
        if text is not None:
            padded = F.pad(text.to(weight), (0, 0, 0, spec.text_tokens - len(text)))
            sequences.append(self.text_embedding(padded[None]))
        if image is not None:
            sequences.append(self.img_emb(image.to(weight)[None]))
        attentions = [layer.cross_attn for layer in cast("list[Layer]", self.blocks)]
        layers = tuple(tuple(x[0] for x in attention.read(*sequences)) for attention in attentions)
        return Context(layers, beside, {name: x for name, x in given.items() if x is not None})

    def _beside(self, latents: Tensor, condition: Condition) -> Tensor:
        """Latents [N, F, C, H, W] with the condition's channels behind their own."""
        if condition.beside is not None:
            latents = torch.cat([latents, condition.beside.to(latents.dtype)], dim=2)
        if latents.shape[2] != self.spec.in_channels or any(side % self.spec.patch for side in latents.shape[3:]):
            raise ValueError(
                f"latents and what is beside them have the shape {tuple(latents.shape)}: expected [N, F, "
                f"{self.spec.in_channels}, H, W] with H and W multiples of {self.spec.patch}"
            )
        return latents

    def _action(self, condition: Condition, positions: Tensor, dtype: torch.dtype) -> Action | None:
        """Actions and what turns them, for the layers that have an action module."""
        module = self.spec.actions
        if module is None:
            return None
        actions, wanted = condition.actions, (*positions.shape, module.frames, module.keyboard + module.mouse)
        if actions.shape != wanted:
            raise ValueError(f"actions have the shape {tuple(actions.shape)}: expected [N, F, W, A] = {wanted}")
        return Action(actions.to(dtype), action_rotary(module, positions))


def check_sequence(name: str, x: Tensor | None, tokens: int, width: int, at_most: bool = False) -> None:
    """Raises ValueError unless `x` is what a model takes: None where it takes no tokens."""
    if not tokens:
        if x is not None:
            raise ValueError(f"this model takes no {name}, and was given some of shape {tuple(x.shape)}")
        return
    if x is None:
        raise ValueError(f"this model needs the {name}'s embeddings [{tokens}, {width}], and was given none")
    fits = x.ndim == 2 and x.shape[1] == width and (len(x) <= tokens if at_most else len(x) == tokens)
    if not fits:
        limit = f"at most {tokens}" if at_most else f"{tokens}"
        raise ValueError(f"{name} embeddings have the shape {tuple(x.shape)}: expected [{limit}, {width}]")


def flops(spec: WanSpec, tokens_per_frame: int, frames: int, history: int) -> int:
    """Floating-point operations (2 a multiply-add) of one pass of one world: products and attention, nothing else.

    Args:
        tokens_per_frame: S, H W / patch^2 of a latent.
        frames: latent frames in flight.
        history: latent frames that they see besides themselves.
    """
    width, queries, visible = spec.width, frames * tokens_per_frame, frames + history
    linears = queries * (6 * width**2 + 2 * width * spec.ffn)
    attention = 2 * queries * width * (visible * tokens_per_frame + spec.text_tokens + spec.image_tokens)
    patches = queries * width * (spec.in_channels + spec.out_channels) * spec.patch**2
    steer = frames * (spec.frequencies * width + 7 * width**2)
    total = spec.layers * (linears + attention) + patches + steer
    if module := spec.actions:
        total += len(module.layers) * action_macs(module, width, tokens_per_frame, frames, visible)
    return 2 * total
