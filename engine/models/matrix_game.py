"""Matrix-Game 2's action module (Skywork, 2025): mouse and keys steer tokens through attention over time.

It stands between cross-attention and feed-forward. The mouse branch joins each token with the mouse's motion and lets
it attend to its own place at other times; in the keyboard branch every token attends to keys and values that the
pressed keys make, one a latent frame. Both keep a history of their own (streams "mouse" and "keyboard" of the view).
Modules have the checkpoints' names; `mouse_attn_q` is the keyboard branch's query, whatever it is called.

Legend: N worlds, F latent frames in flight, T visible ones, S tokens of a frame, D width, W frames' actions shown,
A action encoding (keyboard, then mouse), h heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from engine.attention import Kernel, LayerView, attend, choose_kernel
from engine.kv.view import Group, Turn
from engine.models.rotary import Rotary, time_turns
from engine.published import ActionModule

# In the checkpoints, and never applied by the published code: a loader drops them.
IGNORED_SUFFIXES = tuple(f".action_model.{a}_attn_{b}_norm.weight" for a in ("img", "key") for b in ("q", "k"))


class View(Protocol):
    """What a denoiser reads the history through: one LayerView a layer and stream."""

    def layer(self, index: int, stream: str = "self") -> LayerView: ...


@dataclass(frozen=True)
class Action:
    """What the action modules of one pass share.

    Attributes:
        frames: actions that each latent frame is shown, [N, F, W, A].
        rotary: turns the modules' queries and keys.
    """

    frames: Tensor
    rotary: Rotary


def shown_frames(spec: ActionModule, position: int) -> list[int]:
    """Pixel frames whose actions latent frame `position` is shown: 4f - 12 .. 4f - 1, those before the first are it."""
    end = spec.frames_per_latent * position
    return [max(0, frame) for frame in range(end - spec.frames, end)]


def action_rotary(spec: ActionModule, positions: Tensor) -> Rotary:
    """The module's rotary at absolute latent positions [N, F]: a head's first channels turn, in float32."""
    turns = partial(time_turns, width=spec.head_width, turning=spec.rope_width, base=spec.rope_base)
    return Rotary(positions, turns, torch.float32)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last axis in the precision of `x`: squares and their mean are rounded to it; no weight.

    The root itself is taken in float32: in bf16 a CPU rounds it otherwise where a row fills no whole vector.
    """
    return x * (x.square().mean(-1, keepdim=True) + eps).float().rsqrt().to(x.dtype)


class KeyboardActions(nn.Module):
    """The action module of a model without a mouse.

    Args:
        width: D.
        index: which of the layers that have a module this is; names its streams.
    """

    def __init__(self, spec: ActionModule, width: int, index: int, eps: float):
        super().__init__()
        self.spec, self.index, self.eps = spec, index, eps
        inner = spec.heads * spec.head_width
        self.keyboard_embed = nn.Sequential(
            nn.Linear(spec.keyboard, spec.hidden), nn.SiLU(), nn.Linear(spec.hidden, spec.hidden)
        )
        self.mouse_attn_q = nn.Linear(width, inner, bias=False)
        self.keyboard_attn_kv = nn.Linear(spec.frames * spec.hidden, 2 * inner, bias=False)
        self.proj_keyboard = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, action: Action, view: View) -> Tensor:
        """Steer tokens [N, F, S, D] by actions."""
        pressed = action.frames[..., : self.spec.keyboard]
        q = self._heads(self.mouse_attn_q(x.flatten(1, 2)), 1)[0]
        k, v = self._heads(self.keyboard_attn_kv(self.keyboard_embed(pressed).flatten(2)), 2)
        q, k = unit_rms(q, self.eps), unit_rms(k, self.eps)
        out = attend(action.rotary(q), k, v, view.layer(self.index, "keyboard"), action.rotary)
        return x + self.proj_keyboard(out.flatten(2)).view_as(x)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[N, tokens, parts h d] -> so many [N, tokens, h, d]."""
        return x.unflatten(-1, (parts, self.spec.heads, self.spec.head_width)).unbind(2)


class MouseActions(KeyboardActions):
    """The action module of a model with a mouse: its branch comes first."""

    def __init__(self, spec: ActionModule, width: int, index: int, eps: float):
        super().__init__(spec, width, index, eps)
        inner = spec.heads * spec.head_width
        self.mouse_mlp = nn.Sequential(
            nn.Linear(width + spec.frames * spec.mouse, inner),
            nn.GELU(approximate="tanh"),
            nn.Linear(inner, inner),
            nn.LayerNorm(inner),
        )
        self.t_qkv = nn.Linear(inner, 3 * inner, bias=False)
        self.proj_mouse = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, action: Action, view: View) -> Tensor:
        """Steer tokens [N, F, S, D] by actions."""
        tokens = x.shape[2]
        motion = action.frames[..., self.spec.keyboard :].flatten(2)
        joined = torch.cat([x, motion.unsqueeze(2).expand(-1, -1, tokens, -1)], dim=-1)
        q, k, v = self._heads(self.t_qkv(self.mouse_mlp(joined)).flatten(1, 2), 3)
        q, k = unit_rms(q, self.eps), unit_rms(k, self.eps)
        out = attend_in_time(action.rotary(q), k, v, view.layer(self.index, "mouse"), action.rotary, tokens)
        return super().forward(x + self.proj_mouse(out.flatten(2)).view_as(x), action, view)


def action_layer(spec: ActionModule, width: int, layer: int, eps: float) -> KeyboardActions | None:
    """The action module of a transformer layer; None where it has none."""
    if layer not in spec.layers:
        return None
    make = MouseActions if spec.mouse else KeyboardActions
    return make(spec, width, spec.layers.index(layer), eps)


def attend_in_time(q: Tensor, k: Tensor, v: Tensor, view: LayerView, turn: Turn, tokens: int) -> Tensor:
    """Attention of each of S tokens to its own place in all visible frames: [N, F S, h, d] as `engine.attention`."""
    kernel = choose_kernel(q)
    groups = view.extend(q, k, v, turn)
    parts = [_group_in_time(kernel, q[:, g.queries], g, tokens) for g in groups if isinstance(g, Group)]
    assert len(parts) == len(groups), "attention in time reads gathered keys"
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _group_in_time(kernel: Kernel, q: Tensor, group: Group, tokens: int) -> Tensor:
    """One group of queries: places take the part of worlds."""
    q, keys, values = (rearrange(x, "n (t s) h d -> (n s) t h d", s=tokens) for x in (q, group.keys, group.values))
    out = kernel(q, Group(slice(None), keys, values, mask_of_frames(group.mask, tokens)))
    return rearrange(out, "(n s) t h d -> n (t s) h d", s=tokens)


def mask_of_frames(mask: Tensor | None, tokens: int) -> Tensor | None:
    """A mask over tokens [N or 1, 1, F S or 1, T S] as one over frames [N S or 1, 1, F or 1, T]."""
    if mask is None:
        return None
    mask = mask[..., ::tokens] if mask.shape[2] == 1 else mask[..., ::tokens, ::tokens]
    return mask if len(mask) == 1 else mask.repeat_interleave(tokens, 0)


def action_macs(spec: ActionModule, width: int, tokens: int, frames: int, visible: int) -> int:
    """Multiply-adds of one module in one pass over `frames` latent frames that see `visible`, themselves included."""
    inner, queries = spec.heads * spec.head_width, frames * tokens
    keys = spec.frames * (spec.keyboard * spec.hidden + spec.hidden**2 + spec.hidden * 2 * inner)
    attention = 2 * queries * visible * inner
    total = frames * keys + queries * 2 * width * inner + attention
    if spec.mouse:
        linears = (width + spec.frames * spec.mouse) * inner + inner**2 + inner * 3 * inner + inner * width
        total += queries * linears + attention
    return total
