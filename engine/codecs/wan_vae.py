"""WanVae: the causal video codec of the Wan2.1 family, streaming, 8x8 pixels and four frames a latent.

The first latent of a world is one frame, every later one four. What the convolutions have seen is a world's streaming
state (history.py), so a block of latents is decoded in one run that gives what decoding them one by one gives, and
worlds of any age share it. Parameters carry the published names: weights load strictly, as they are (wan_vae_layout.py
reads sizes off them, and maps names of diffusers). Source: Wan-Video/Wan2.1, wan/modules/vae.py. Knows no worlds.

Shapes: N worlds, T frames, F latent frames, C latent channels, H W pixels, h w = H/8, W/8.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from engine.codecs.history import LAYOUT, History, State, by_age, check_states, streamed
from engine.codecs.video import all_frames, channels_last
from engine.codecs.wan_vae_layers import CausalConv3d, Decoder, Encoder
from engine.published import WanVaeSpec

# Statistics of the published VAE's latents, one a channel.
MEAN: tuple[float, ...] = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
STD: tuple[float, ...] = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


class WanVae(nn.Module):
    """Frames uint8 [N, T, H, W, 3] <-> latents [N, F, C, h, w] of about unit variance, T = 1 + 4 (F - 1) at first.

    Args:
        temporal: which of the encoder's halvings halve time too; by default the last ones, as many as the spec's
            `frames_per_latent` needs.
        encoder, decoder: build this half. A half that is not there raises when it is called.
        mean, std: the latents' statistics, one a channel.
        latents_at_once: the most latent frames that one run of the model takes; more bound its memory, not its result.
    """

    def __init__(
        self,
        spec: WanVaeSpec,
        *,
        temporal: Sequence[bool] | None = None,
        encoder: bool = True,
        decoder: bool = True,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        latents_at_once: int = 4,
    ):
        super().__init__()
        self.spec, self.latents_at_once = spec, latents_at_once
        self.temporal = tuple(temporal) if temporal is not None else last_ones(spec)
        self.mean, self.std = tuple(mean), tuple(std)
        check_sizes(spec, self.temporal, self.mean, self.std)
        self.frames_per_latent = spec.frames_per_latent
        widths, c = [spec.width * m for m in spec.multiples], spec.channels
        if encoder:
            self.encoder = Encoder(spec.width, widths, spec.depth, self.temporal, 2 * c)
            self.conv1 = CausalConv3d(2 * c, 2 * c, (1, 1, 1))
        if decoder:
            self.conv2 = CausalConv3d(c, c, (1, 1, 1))
            self.decoder = Decoder(c, widths, spec.depth, self.temporal)
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
        self._check_latents(latents, states or ())
        return by_age(self._decode, latents, states)

    def encode(
        self, frames: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """uint8 [N, T, H, W, 3] -> normalised latents [N, F, C, h, w] in float32, and the new streaming states.

        A clip may come in pieces: 1 + 4 k frames first, then multiples of 4. Surplus frames of a first piece are
        dropped, as in the published code. Nothing is sampled: latents are the means.

        Raises:
            ValueError: sizes that are no multiple of 8, or a later piece that is no multiple of 4 frames.
        """
        return self.encode_signal(frames.movedim(-1, -3), states)

    def encode_signal(
        self, video: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """As `encode`, from video [N, T, 3, H, W] in [-1, 1], or in uint8."""
        self._check_video(video, states or ())
        return by_age(self._encode, video, states)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _decode(self, latents: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """`signal` of worlds that are all fresh or none."""
        mean, inverse = statistics(self.mean, self.std, latents.dtype, latents.device)
        z = (latents / inverse + mean).to(self.dtype)
        return streamed(self._decode_piece, z.split(self.latents_at_once, dim=1), states)

    def _decode_piece(self, z: Tensor, history: History) -> Tensor:
        """[N, F, C, h, w] -> [N, T, 3, H, W]."""
        z = z.transpose(1, 2).contiguous(memory_format=LAYOUT)
        return self.decoder(self.conv2(z), history).transpose(1, 2)

    def _encode(self, video: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """`encode_signal` of worlds that are all fresh or none."""
        mean, inverse = statistics(self.mean, self.std, torch.float32, video.device)
        means, states = streamed(self._encode_piece, self._runs(video, first=states[0] is None), states)
        return (means.float() - mean) * inverse, states

    def _encode_piece(self, video: Tensor, history: History) -> Tensor:
        """[N, T, 3, H, W] -> [N, F, C, h, w], not normalised."""
        signal = video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video
        made = self.conv1(self.encoder(signal.to(self.dtype).transpose(1, 2), history))
        return made[:, : self.spec.channels].transpose(1, 2)

    def _runs(self, video: Tensor, first: bool) -> list[Tensor]:
        """The frames of one run of the encoder after another; surplus frames are left out."""
        rate = self.frames_per_latent
        alone = 1 if first else 0
        num_latents = (video.shape[1] - alone) // rate + alone
        ends = [(k - alone) * rate + alone for k in range(0, num_latents, self.latents_at_once)][1:]
        return list(video[:, : (num_latents - alone) * rate + alone].tensor_split(ends, dim=1))

    def _check_latents(self, latents: Tensor, states: Sequence[State]) -> None:
        if not hasattr(self, "decoder"):
            raise ValueError("this VAE has no decoder: load the weights of both halves")
        if latents.ndim != 5 or latents.shape[2] != self.spec.channels or not latents.shape[1]:
            raise ValueError(f"latents {tuple(latents.shape)}: expected [N, F, {self.spec.channels}, h, w], F > 0")
        check_states(states, latents.shape[-2:])

    def _check_video(self, video: Tensor, states: Sequence[State]) -> None:
        scale, rate = self.spec.scale, self.frames_per_latent
        if not hasattr(self, "encoder"):
            raise ValueError("this VAE has no encoder: load the weights of both halves")
        if video.ndim != 5 or video.shape[2] != 3 or video.shape[3] % scale or video.shape[4] % scale:
            raise ValueError(
                f"video {tuple(video.shape)} as [N, T, C, H, W]: expected C = 3, H and W multiples of {scale}"
            )
        if not video.shape[1] or (any(state is not None for state in states) and video.shape[1] % rate):
            raise ValueError(
                f"{video.shape[1]} frames: a clip starts with 1 + {rate} k and goes on in multiples of {rate}"
            )
        check_states(states, video.shape[-2:])


def check_sizes(spec: WanVaeSpec, temporal: Sequence[bool], mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ValueError unless the numbers of a VAE agree with each other."""
    halvings = len(spec.multiples) - 1
    if len(temporal) != halvings or 2 ** sum(temporal) != spec.frames_per_latent or 2**halvings != spec.scale:
        raise ValueError(
            f"temporal {tuple(temporal)} and multiples {spec.multiples} do not make {spec.scale} pixels and "
            f"{spec.frames_per_latent} frames a latent: each step between multiples halves the size, and time where "
            "`temporal` says so"
        )
    if len(mean) != spec.channels or len(std) != spec.channels:
        raise ValueError(f"{len(mean)} means and {len(std)} deviations for {spec.channels} latent channels")


def last_ones(spec: WanVaeSpec) -> tuple[bool, ...]:
    """The encoder's halvings of time as the published VAE has them: at the deepest levels."""
    halvings, halvings_of_time = len(spec.multiples) - 1, spec.frames_per_latent.bit_length() - 1
    return tuple(i >= halvings - halvings_of_time for i in range(halvings))


@lru_cache(maxsize=16)
def statistics(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and 1/std [C, 1, 1]. Each is rounded to `dtype` before it is used, as in the published code."""
    shape = (len(mean), 1, 1)
    # What is kept for later calls has to serve those with gradients too.
    with torch.inference_mode(False):
        rounded = torch.tensor([mean, std], dtype=torch.float32, device=device).to(dtype)
        return rounded[0].view(shape), (1.0 / rounded[1]).view(shape)
