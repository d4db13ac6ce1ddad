"""ActionDiT: our denoiser. A block-causal diffusion transformer over latent tokens, steered by actions.

adaLN from the noise level, the action and the named variables of each latent frame; query and key norms; rotary
positions in three axes; full attention inside a block and to the pages its view shows. It does not know ranks,
caches, schedules or how many passes there are.

Legend: N worlds, F latent frames, C H W latent, S tokens of a frame, D width, A action encoding, V variables.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from engine.attention import LayerView
from engine.conditioning import Condition
from engine.models.layers import Layer, level_features, modulate
from engine.models.seam import WHOLE, Seam
from engine.rope import rotations
from engine.spec import DenoiserSpec, WorldSpec


class View(Protocol):
    """What a denoiser reads the history through: one LayerView a layer."""

    def layer(self, index: int) -> LayerView: ...


class ActionDiT(nn.Module):
    """`(latents, times, positions, condition, view) -> prediction, features` (see `forward`)."""

    def __init__(self, spec: WorldSpec):
        super().__init__()
        d = spec.denoiser
        assert isinstance(d, DenoiserSpec)
        channels, rows, columns = spec.latent
        self.patch, self.heads, self.rope_base = d.patch, d.heads, d.rope_base
        self.grid = (rows // d.patch, columns // d.patch)
        self.width, self.head_width = d.width, d.width // d.heads
        self.seam: Seam = WHOLE
        self.embed = nn.Linear(channels * d.patch**2, d.width)
        self.place = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], d.width).normal_() * 0.02)
        self.level = nn.Sequential(nn.Linear(d.width, d.width), nn.SiLU(), nn.Linear(d.width, d.width))
        self.action = nn.Sequential(nn.Linear(spec.actions.width, d.width), nn.SiLU(), nn.Linear(d.width, d.width))
        self.variables = nn.Linear(len(spec.variables), d.width) if spec.variables else None
        self.layers = nn.ModuleList(Layer(d.width, d.heads) for _ in range(d.layers))
        self.final = nn.Linear(d.width, 2 * d.width)
        self.predict = nn.Linear(d.width, channels * d.patch**2)
        for linear in (self.final, self.predict):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, latents: Tensor, times: Tensor, positions: Tensor, condition: Condition, view: View
    ) -> tuple[Tensor, Tensor]:
        """Predict the velocity of latents at noise levels `times`.

        Args:
            latents: [N, F, C, H, W].
            times: noise level in [0, 1] of each latent frame, [N, F].
            positions: integer time positions [N, F].
            condition: actions [N, F, A] and scaled variables [N, F, V].
            view: the history, and where this block's K/V go.

        Returns:
            prediction [N, F, C, H, W] and features [N, F, S, D], the tokens before the last projection.
        """
        dtype, p, cut = self.place.dtype, self.patch, self.seam.cut
        patches = rearrange(latents.to(dtype), "n f c (y p) (x q) -> n f (y x) (c p q)", p=p, q=p)
        x = self.embed(cut(patches, 2)) + cut(self.place, 0)
        steer = self.steer(times, condition, dtype)
        rope = self.turns(positions, dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, steer, rope, view.layer(index))
        shift, scale = self.final(steer).chunk(2, dim=-1)
        features = modulate(x, shift, scale)
        out = self.seam.join(self.predict(features), 2)
        return rearrange(out, "n f (y x) (c p q) -> n f c (y p) (x q)", y=self.grid[0], p=p, q=p), features

    def turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens, [N, F S, 1, 1, d]: the same for queries and keys."""
        made = rotations(positions, self.grid, self.head_width, self.rope_base)
        frames = (x.to(dtype).unsqueeze(2).unflatten(1, (positions.shape[1], -1)) for x in made)
        cos, sin = (self.seam.cut(x, 2).flatten(1, 2) for x in frames)
        return cos, sin

    def steer(self, times: Tensor, condition: Condition, dtype: torch.dtype) -> Tensor:
        """The adaLN condition of each latent frame, [N, F, D]."""
        total = self.level(level_features(times, self.width).to(dtype))
        total = total + self.action(condition.actions.to(dtype))
        if self.variables is not None:
            total = total + self.variables(condition.variables.to(dtype))
        return F.silu(total)
