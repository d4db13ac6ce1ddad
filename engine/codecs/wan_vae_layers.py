"""Layers of the Wan2.1 VAE, under the names of its published weights (Wan-Video/Wan2.1, wan/modules/vae.py).

Every layer takes the frames of N worlds and their `History`, from which a layer that looks back reads its past. The
first frame of a world stands alone: it is neither doubled in time by the decoder nor joined to others by the encoder.

Shapes: N worlds, C channels, T frames at the layer's rate, H W the layer's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from engine.codecs.history import History
from engine.codecs.norm import Norm
from engine.codecs.video import as_pictures, as_video, enlarge


class CausalConv3d(nn.Conv3d):
    """A convolution that sees each frame and the `depth - 1` before it; in space it pads with zeros.

    Args:
        size: of the kernel in time, height and width.
        stride: in time.
    """

    def __init__(self, channels: int, outputs: int, size: tuple[int, int, int] = (3, 3, 3), stride: int = 1):
        super().__init__(channels, outputs, size, (stride, 1, 1), (0, size[1] // 2, size[2] // 2))
        self.looks_back = size[0] - 1

    def stream(self, x: Tensor, history: History) -> Tensor:
        return self(history.lead(x, self.looks_back))


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a 1x1x1 convolution carries x where the width changes."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        # The published weights number these layers by their places in a Sequential.
        self.residual = nn.ModuleDict(
            {
                "0": Norm(channels),
                "2": CausalConv3d(channels, outputs),
                "3": Norm(outputs),
                "6": CausalConv3d(outputs, outputs),
            }
        )
        self.shortcut = CausalConv3d(channels, outputs, (1, 1, 1)) if channels != outputs else nn.Identity()

    def forward(self, x: Tensor, history: History) -> Tensor:
        y = activated(self.residual["0"], self.residual["2"], x, history)
        y = activated(self.residual["3"], self.residual["6"], y, history)
        return self.shortcut(x) + y


def activated(norm: nn.Module, conv: nn.Module, x: Tensor, history: History) -> Tensor:
    """conv(silu(norm(x))); the past that the convolution keeps is normed already."""
    assert isinstance(norm, Norm)
    assert isinstance(conv, CausalConv3d)
    return conv(history.lead(x, conv.looks_back, norm.activate))


class Attention(nn.Module):
    """Each frame's places attend to one another, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Norm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, history: History) -> Tensor:
        frames = as_pictures(x)
        h = frames.shape[-2]
        qkv = rearrange(self.to_qkv(self.norm(frames)), "b c h w -> b 1 (h w) c").chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(*qkv)
        return x + as_video(self.proj(rearrange(seen, "b 1 (h w) c -> b c h w", h=h)), len(x))


class Upsample(nn.Module):
    """Twice the height and width, half the channels; with `temporal`, two frames of each but a world's first."""

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        return as_video(self.resample["1"](self._enlarged(x, history)), len(x))

    def _enlarged(self, x: Tensor, history: History) -> Tensor:
        """[N, C, T, H, W] -> [(N T'), C, 2H, 2W] by nearest neighbours, doubled in time where this layer does so."""
        if self.time_conv is None:
            return enlarge(x, 1)
        if not history.fresh:
            return enlarge(self.time_conv.stream(x, history), 2)
        # The first frame passes as it is, and the convolution in time never sees it.
        first, rest = enlarge(x[:, :, :1], 1), history.lead(x[:, :, 1:], self.time_conv.looks_back)
        if x.shape[2] == 1:
            return first
        parts = (first, enlarge(self.time_conv(rest), 2))
        return as_pictures(torch.cat([as_video(part, len(x)) for part in parts], dim=2))


class Downsample(nn.Module):
    """Half the height and width; with `temporal`, one frame of each two after a world's first."""

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride=2) if temporal else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        # The padding is the published one: zeros on the right and at the bottom only.
        x = as_video(self.resample["1"](F.pad(as_pictures(x), (0, 1, 0, 1))), len(x))
        if self.time_conv is None:
            return x
        if not history.fresh:
            return self.time_conv(history.lead(x, 1))
        history.keep(x, 1)
        first = x[:, :, :1]
        return first if x.shape[2] == 1 else torch.cat([first, self.time_conv(x)], dim=2)


class Streamed(nn.ModuleList):
    """Layers that take a history, one after another."""

    def forward(self, x: Tensor, history: History) -> Tensor:
        for layer in self:
            x = layer(x, history)
        return x


class Encoder(nn.Module):
    """Video [N, 3, T, H, W] -> [N, outputs, F, h, w].

    Args:
        widths: channels at the full size and at each half of it.
        depth: residual blocks at each size.
        temporal: which halvings halve time too.
    """

    def __init__(self, start: int, widths: Sequence[int], depth: int, temporal: Sequence[bool], outputs: int):
        super().__init__()
        self.conv1 = CausalConv3d(3, start)
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            before = [start, *widths][i]
            layers += [ResidualBlock(before if k == 0 else width, width) for k in range(depth)]
            if i < len(temporal):
                layers.append(Downsample(width, temporal[i]))
        self.downsamples = Streamed(layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], outputs)

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = self.middle(self.downsamples(self.conv1.stream(x, history), history), history)
        return activated(self.head["0"], self.head["2"], x, history)


class Decoder(nn.Module):
    """[N, channels, F, h, w] -> video [N, 3, T, H, W]; arguments as the encoder's, in the encoder's order."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, temporal: Sequence[bool]):
        super().__init__()
        self.conv1 = CausalConv3d(channels, widths[-1])
        self.middle = middle(widths[-1])
        layers: list[nn.Module] = []
        before = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            layers += [ResidualBlock(before if k == 0 else width, width) for k in range(depth + 1)]
            if i > 0:
                layers.append(Upsample(width, temporal[i - 1]))
            before = width // 2
        self.upsamples = Streamed(layers)
        self.head = head(widths[0], 3)

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = self.upsamples(self.middle(self.conv1.stream(x, history), history), history)
        return activated(self.head["0"], self.head["2"], x, history)


def middle(width: int) -> Streamed:
    return Streamed([ResidualBlock(width, width), Attention(width), ResidualBlock(width, width)])


def head(width: int, outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": Norm(width), "2": CausalConv3d(width, outputs)})
