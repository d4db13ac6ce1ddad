"""MagiVae: MAGI-1's video codec, a pair of vision transformers; 8x8 pixels and four frames a latent.

A clip is cut into tiles of three latents in time, which know nothing of each other, and of 256x256 pixels, which blend
(magi_vae_tiles.py). A tile is seen whole, so its frames depend on all its latents. A clip may come in pieces: a world's
streaming state are the latents of its last tile as long as that is unfinished, and the next piece goes on with it.
Pieces of whole tiles, such as MAGI-1's chunks of six latents, leave no state, and give what the whole clip gives.
Sizes and weights: magi_vae_layout.py. Source: SandAI-org/MAGI-1, inference/model/vae. Knows no worlds.

Shapes: N worlds, T frames, F latent frames, C latent channels, H W pixels, h w = H/8, W/8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.codecs.magi_vae_layers import Decoder, Encoder
from engine.codecs.magi_vae_tiles import Cut, MakeTiles, Tiling, cut_latents, cut_pixels, made, tiled
from engine.codecs.video import all_frames
from engine.published import MagiVaeSpec

# What a world's last, unfinished tile has been given: [F, C, h, w] or [T, 3, H, W]; None where there is none.
State = Tensor | None

# As the published pipeline cuts clips.
PUBLISHED = Tiling()

# A single picture is encoded as so many frames of it.
STILL = 4


class MagiVae(nn.Module):
    """Frames uint8 [N, T, H, W, 3] <-> latents [N, F, C, h, w] of about unit variance, T = 4 F.

    A tile of a single latent decodes to one frame, and a single frame encodes to one latent: a clip of 4 latents has
    12 + 1 frames. That frame is the first of four; where the clip goes on, the other three come with the next piece.

    Args:
        encoder, decoder: build this half. A half that is not there raises when it is called.
        tiling: size and overlap of tiles.
        tiles_at_once: the most tiles that one run of a transformer takes; more bound its memory, not its result.
    """

    def __init__(
        self,
        spec: MagiVaeSpec,
        *,
        encoder: bool = True,
        decoder: bool = True,
        tiling: Tiling = PUBLISHED,
        tiles_at_once: int = 4,
    ):
        super().__init__()
        if tiles_at_once < 1:
            raise ValueError(f"tiles_at_once {tiles_at_once}: expected at least 1")
        self.spec, self.tiling, self.tiles_at_once = spec, tiling, tiles_at_once
        self.make_tiles: MakeTiles = made  # another function may run some of them elsewhere
        self.frames_per_latent = spec.frames_per_latent
        for cut in (cut_latents, cut_pixels):
            self.cuts(cut)  # refuses tiles that latents do not fit in
        if encoder:
            self.encoder = Encoder(spec)
        if decoder:
            self.decoder = Decoder(spec)

    def decode(
        self, latents: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """Normalised latents [N, F, C, h, w] -> uint8 frames [N, T, H, W, 3], and the worlds' new streaming states.

        Returns:
            T = 4 F, for worlds without a state that end with a whole tile. Where worlds get different T, a list of N
            tensors [T, H, W, 3].

        Raises:
            ValueError: the shape of latents or states does not fit, or tiles do not join.
        """
        self._check_latents(latents)
        self._check_joins(cut_latents, latents)
        video, states = self.signal(latents, states)
        return all_frames(video), states

    def signal(
        self, latents: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """As `decode`, but video [N, T, 3, H, W] in the weights' precision, about -1 to 1 and not clamped.

        Where tiles do not overlap by whole latents, they are put side by side as the published code does it.
        """
        self._check_latents(latents)
        return continued(self._decode, self.frames_of, self.cuts(cut_latents)[0], latents, states)

    def encode(
        self, frames: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """uint8 [N, T, H, W, 3] -> normalised latents [N, F, C, h, w] in float32, and the new streaming states.

        A single frame, of a tile of its own, is encoded as if it stood still. Other frames that do not fill a latent
        wait in the state for the next piece. Nothing is sampled: latents are the means.

        Raises:
            ValueError: sizes that are no multiple of 8, a tile that would have two or three frames, or tiles that do
                not join.
        """
        video = frames.movedim(-1, -3)
        self._check_video(video)
        self._check_joins(cut_pixels, video)
        return self.encode_signal(video, states)

    def encode_signal(
        self, video: Tensor, states: Sequence[State] | None = None
    ) -> tuple[Tensor | list[Tensor], list[State]]:
        """As `encode`, from video [N, T, 3, H, W] in [-1, 1], or in uint8; tiles as for `signal`."""
        self._check_video(video)
        return continued(self._encode, self.latents_of, self.cuts(cut_pixels)[0], video, states)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def frames_of(self, latents: int) -> int:
        """Frames of a clip of so many latents."""
        return sum(self.cuts(cut_latents)[0].shown(latents))

    def latents_of(self, frames: int) -> int:
        """Latents of a clip of so many frames.

        Raises:
            ValueError: one of its tiles would have too few frames.
        """
        time, rate = self.cuts(cut_pixels)[0], self.frames_per_latent
        pieces = time.pieces(frames)
        if any(1 < n < rate for n in pieces):
            raise ValueError(
                f"a clip of {frames} frames: its last tile would have {pieces[-1]}, and a latent is made of {rate}, or "
                f"of a single picture. Give multiples of {rate}, or one frame after whole tiles of {time.size}"
            )
        return sum(time.shown(frames))

    def _decode(self, latents: Tensor) -> Tensor:
        """[N, F, C, h, w] -> [N, T, 3, H, W]."""
        z, cuts = latents.float().transpose(1, 2) / self.spec.factor, self.cuts(cut_latents)
        return self._tiled(self._decode_tiles, z, cuts, chained=False).transpose(1, 2)

    def _decode_tiles(self, z: Tensor) -> Tensor:
        """[B, C, t, h, w] -> [B, 3, T, H, W]."""
        video = self.decoder(z.to(self.dtype))
        return video[:, :, :1] if z.shape[2] == 1 else video

    def _encode(self, video: Tensor) -> Tensor:
        """[N, T, 3, H, W] -> [N, F, C, h, w]."""
        self.latents_of(video.shape[1])  # refuses tiles of too few frames
        x, cuts = video.transpose(1, 2), self.cuts(cut_pixels)
        means = self._tiled(self._encode_tiles, x, cuts, chained=True)
        return means.transpose(1, 2) * self.spec.factor

    def _encode_tiles(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, C, t, h, w]."""
        signal = video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video
        still = signal.shape[2] == 1
        if still:
            signal = signal.expand(-1, -1, max(STILL, self.frames_per_latent), -1, -1)
        means = self.encoder(signal.to(self.dtype)).float()
        return means[:, :, :1] if still else means

    def _tiled(self, run: Callable[[Tensor], Tensor], x: Tensor, cuts: Sequence[Cut], chained: bool) -> Tensor:
        return tiled(run, x, cuts, chained=chained, at_once=self.tiles_at_once, make=self.make_tiles)

    def cuts(self, cut: Callable[[int, float, int], Cut]) -> tuple[Cut, Cut, Cut]:
        """How time, height and width are cut. A single latent, or frame, makes one of the other."""
        tiling, spec = self.tiling, self.spec
        side = cut(tiling.pixels, tiling.overlap, spec.scale)
        time = cut(tiling.frames, tiling.temporal_overlap, spec.frames_per_latent)
        return replace(time, made=lambda n: 1 if n == 1 else time.made(n)), side, side

    def _check_latents(self, latents: Tensor) -> None:
        if not hasattr(self, "decoder"):
            raise ValueError("this VAE has no decoder: load the weights of both halves")
        if latents.ndim != 5 or latents.shape[2] != self.spec.channels or not latents.numel():
            raise ValueError(f"latents {tuple(latents.shape)}: expected [N, F, {self.spec.channels}, h, w], none empty")

    def _check_video(self, video: Tensor) -> None:
        scale, shape = self.spec.scale, tuple(video.shape)
        if not hasattr(self, "encoder"):
            raise ValueError("this VAE has no encoder: load the weights of both halves")
        if len(shape) != 5 or shape[2] != 3 or shape[3] % scale or shape[4] % scale or not video.numel():
            raise ValueError(
                f"video {shape} as [N, T, C, H, W]: expected C = 3, H and W multiples of {scale}, none empty"
            )

    def _check_joins(self, cut: Callable[[int, float, int], Cut], x: Tensor) -> None:
        for axis, length in zip(self.cuts(cut), (x.shape[1], *x.shape[3:]), strict=True):
            axis.check(length)


def continued(
    run: Callable[[Tensor], Tensor],
    outputs: Callable[[int], int],
    time: Cut,
    x: Tensor,
    states: Sequence[State] | None,
) -> tuple[Tensor | list[Tensor], list[State]]:
    """Run each world's clip from its last unfinished tile on; worlds whose states are as long share a batch.

    Args:
        run: clips [n, K, ...] -> what is made of them, [n, outputs(K), ...].
        outputs: how many are made of a clip of so many; those that a world has had are left out.
        time: how clips are cut in time.
        x: [N, F, ...], what follows the states.
        states: one a world; None for worlds without any.

    Returns:
        Outputs in the order of the worlds, [N, ...] or, where they differ in number, a list; and the states left.
    """
    states = [None] * len(x) if states is None else list(states)
    check_states(states, x)
    lengths = [0 if state is None else len(state) for state in states]
    rows, left = dict[int, Tensor](), dict[int, State]()
    for length in set(lengths):
        group = [i for i, n in enumerate(lengths) if n == length]
        clips = torch.stack([joined(states[i], x[i]) for i in group])
        made, unfinished = run(clips)[:, outputs(length) :], clips[:, time.unfinished(clips.shape[1]) :]
        rows |= dict(zip(group, made, strict=True))
        left |= {i: clip.clone() if len(clip) else None for i, clip in zip(group, unfinished, strict=True)}
    kept = [left[i] for i in range(len(x))]
    if len(set(lengths)) == 1:
        return made, kept
    outs = [rows[i] for i in range(len(x))]
    return torch.stack(outs) if len({len(row) for row in outs}) == 1 else outs, kept


def joined(state: State, x: Tensor) -> Tensor:
    """[F, ...] after what is kept of the clip."""
    return x if state is None else torch.cat([state, x])


def check_states(states: Sequence[State], x: Tensor) -> None:
    """Raises ValueError unless there is a state for each row of [N, F, ...], and those that are there go with it."""
    if len(states) != len(x):
        raise ValueError(f"{len(states)} streaming states for {len(x)} worlds: give one a world, None for a new one")
    for state in states:
        if state is not None and state.shape[1:] != x.shape[2:]:
            raise ValueError(
                f"a streaming state of {tuple(state.shape[1:])} for {tuple(x.shape[2:])}: a world's size cannot "
                "change. Open a new one"
            )
