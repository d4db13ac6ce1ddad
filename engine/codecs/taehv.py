"""Taehv: a tiny codec for the latents of the Wan2.1 VAE, 25 times cheaper to decode and softer.

Convolutions are of single frames; a MemBlock also sees its own input of one frame before, which is all the streaming
state there is. Parameters carry the names of the published weights (taew2_1.pth), which load strictly. Source:
github.com/madebyollin/taehv. Knows no worlds.

Shapes: N worlds, T frames, F latent frames, C channels, H W pixels, h w = H/8, W/8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from engine.codecs.history import History, State, by_age, check_states, empty_like, streamed
from engine.codecs.video import all_frames, as_pictures, as_video, channels_last, enlarge

# Frames that the decoder makes of a world's first latent before the one that the VAE makes.
AHEAD = 3


class MemBlock(nn.Module):
    """relu(x + convs([x, x of the frame before]))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor, history: History) -> Tensor:
        video = as_video(x, len(history.states))
        c = video.shape[1]
        pair = empty_like(video, video.shape[2], times=2)
        pair[:, :c], pair[:, c:, 1:] = video, video[:, :, :-1]
        history.recall(pair[:, c:, :1])
        history.keep(video, 1)
        return (self.conv(as_pictures(pair)) + x).relu_()


class Grow(nn.Module):
    """Twice the height and width and `stride` frames of each, by a 1x1 convolution and nearest neighbours.

    The published order is to enlarge first; before it the same convolution is four times cheaper.
    """

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)
        self.register_load_state_dict_pre_hook(keep_last_rows)

    def forward(self, x: Tensor, history: History) -> Tensor:
        return enlarge(self.conv(x).unsqueeze(2), self.stride)


class Pool(nn.Module):
    """One frame of each `stride`, by a 1x1 convolution."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor, history: History) -> Tensor:
        return self.conv(rearrange(x, "(b s) c h w -> b (s c) h w", s=self.stride))


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class Frames(nn.ModuleList):
    """Layers over pictures [(N T), C, H, W], some of which take a history too."""

    def forward(self, x: Tensor, history: History) -> Tensor:
        for layer in self:
            x = layer(x, history) if isinstance(layer, MemBlock | Grow | Pool) else layer(x)
        return x


class Taehv(nn.Module):
    """Frames uint8 [N, T, H, W, 3] <-> latents [N, F, C, h, w], normalised as the VAE's codec has them.

    Args:
        channels: latent channels C.
        widths: the decoder's channels at 1/8, 1/4, 1/2 and the whole of the frame's size.
        encoder_width: the encoder's channels; 0 for no encoder.
        latents_at_once: the most latent frames that one run takes; more bound its memory, not its result.
    """

    frames_per_latent = 4
    scale = 8

    def __init__(
        self,
        channels: int = 16,
        widths: Sequence[int] = (256, 128, 64, 64),
        encoder_width: int = 64,
        latents_at_once: int = 8,
    ):
        super().__init__()
        self.channels, self.latents_at_once = channels, latents_at_once
        self.decoder = decoder_of(channels, widths)
        if encoder_width:
            self.encoder = encoder_of(channels, encoder_width)
        channels_last(self)

    def decode(
        self, latents: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """Normalised latents [N, F, C, h, w] -> uint8 frames, and the worlds' new streaming states.

        Returns:
            [N, T, H, W, 3] with T = 4 F, or 4 F - 3 where all worlds are fresh (state None). Where only some are, a
            list of N tensors [T, H, W, 3].

        Raises:
            ValueError: the shape of latents or states does not fit.
        """
        video, states = self.signal(latents, states)
        return all_frames(video), states

    def signal(
        self, latents: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """As `decode`, but video [N, T, 3, H, W] in the weights' precision, about -1 to 1 and not clamped."""
        if latents.ndim != 5 or latents.shape[2] != self.channels or not latents.shape[1]:
            raise ValueError(f"latents {tuple(latents.shape)}: expected [N, F, {self.channels}, h, w], F > 0")
        check_states(states or (), latents.shape[-2:])
        return by_age(self._decode, latents, states)

    def encode(
        self, frames: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """uint8 [N, T, H, W, 3] -> latents [N, F, C, h, w] in float32, F = T / 4 rounded up, and new states.

        A latent is made of four frames, the last of a clip of its last frame repeated. A clip may come in pieces of
        multiples of 4; another length ends it, and the state that is left is None.

        Raises:
            ValueError: sizes that are no multiple of 8, or a model without encoder.
        """
        if frames.ndim != 5 or not frames.shape[1] or frames.shape[2] % self.scale or frames.shape[3] % self.scale:
            raise ValueError(f"frames {tuple(frames.shape)}: expected [N, T, H, W, 3], H and W multiples of 8")
        if not hasattr(self, "encoder"):
            raise ValueError("these weights have no encoder: load the whole taew2_1.pth, or encode with the VAE")
        # The first layer that looks back works at half the size.
        check_states(states or (), [size // 2 for size in frames.shape[2:4]])
        return by_age(self._encode, rearrange(frames, "n t h w c -> n t c h w"), states)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _decode(self, latents: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        return streamed(self._decode_piece, latents.split(self.latents_at_once, dim=1), states)

    def _decode_piece(self, latents: Tensor, history: History) -> Tensor:
        """[N, F, C, h, w] -> [N, T, 3, H, W]."""
        x = latents.to(self.dtype).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        video = self.decoder(x, history).unflatten(0, (len(latents), -1)) * 2 - 1
        return video[:, AHEAD:] if history.fresh else video

    def _encode(self, frames: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        missing = -frames.shape[1] % self.frames_per_latent
        whole = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        pieces = whole.split(self.latents_at_once * self.frames_per_latent, dim=1)
        latents, states = streamed(self._encode_piece, pieces, states)
        return latents, [None] * len(frames) if missing else states

    def _encode_piece(self, frames: Tensor, history: History) -> Tensor:
        """uint8 [N, T, 3, H, W] -> [N, F, C, h, w]."""
        x = (frames.flatten(0, 1).float() / 255).to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.encoder(x, history).unflatten(0, (len(frames), -1)).float()


def decoder_of(channels: int, widths: Sequence[int]) -> Frames:
    """The decoder; the published weights number its layers by their places, counting an enlargement before a Grow."""
    layers: list[nn.Module] = [Clamp(), conv(channels, widths[0]), nn.ReLU()]
    for width, following, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
        layers += [*memory(width), nn.Identity(), Grow(width, stride), conv(width, following, bias=False)]
    return Frames([*layers, nn.ReLU(), conv(widths[-1], 3)])


def encoder_of(channels: int, width: int) -> Frames:
    layers: list[nn.Module] = [conv(3, width), nn.ReLU()]
    for stride in (2, 2, 1):
        layers += [Pool(width, stride), conv(width, width, stride=2, bias=False), *memory(width)]
    return Frames([*layers, conv(width, channels)])


def memory(width: int) -> list[nn.Module]:
    return [MemBlock(width) for _ in range(3)]


def conv(channels: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1, **options)


def keep_last_rows(grow: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Of a Grow that was trained to make more frames, keep the rows that make the last ones."""
    name = f"{prefix}conv.weight"
    assert isinstance(grow, Grow)
    if name in weights:
        weights[name] = weights[name][-grow.conv.out_channels :]


def taehv_of(weights: Mapping[str, Tensor], **options: Any) -> Taehv:
    """A Taehv with these weights, which have the published names and may lack the encoder.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    try:
        widths = [weights[f"decoder.{i}.weight"].shape[0] for i in (1, 8, 14, 20)]
        encoder_width = weights["encoder.0.weight"].shape[0] if "encoder.0.weight" in weights else 0
        taehv = Taehv(weights["decoder.1.weight"].shape[1], widths, encoder_width, **options)
        taehv.load_state_dict(dict(weights), strict=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"these are no weights of TAEHV for Wan2.1 (taew2_1): {error}") from None
    return taehv
