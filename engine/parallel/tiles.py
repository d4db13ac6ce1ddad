"""spread(codec, mesh): a video codec whose pictures are decoded, and encoded, in strips, one a rank; frames go to all.

Exact: strips have no seams, and frames differ from one rank's by rounding only. Rows that a convolution needs are
fetched where it runs, and not made anew from more latents: of 480 lines, each of four ranks would compute 1.26 times
its share with the Wan2.1 VAE and 1.50 times with TAEHV, at eight 1.48 and 1.94 times (tiles_costs.py), where fetching
takes 33 hops of 3 MB at most. MAGI-1's VAE has tiles of its own, which are dealt out (tiles_magi.py).

A picture of fewer latent rows than ranks is decoded whole by each of them. All ranks call together, with the same
arguments. Applied from outside: the codec does not know of it. Streaming states are of a rank's strip; `whole` and
`share` turn them into one rank's and back, for snapshots.

Shapes: N worlds, T frames, F latent frames, C channels, H W pixels, h w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.codecs.autoencoder import SCALE, AutoEncoder
from engine.codecs.magi_vae import MagiVae
from engine.codecs.preview import Preview
from engine.codecs.taehv import Taehv
from engine.codecs.wan_vae import WanVae
from engine.parallel.beside import CodecBeside
from engine.parallel.mesh import Mesh
from engine.parallel.tiles_layers import Cut, on_strip
from engine.parallel.tiles_magi import TileCodec

# Names of transfers; tiles_costs.py says how many bytes they have.
FRAMES, LATENTS, STATE = "frames", "latents of pictures", "codec state"

Convolutional = AutoEncoder | WanVae | Taehv


@dataclass(frozen=True)
class StripState:
    """What a codec keeps of a world's past, of one rank's strip.

    Attributes:
        rows: of latents, of the whole picture.
        parts: the codec's own state, of the strip.
    """

    rows: int
    parts: list[Tensor]


class StripCodec:
    """A codec of convolutions, spread; see `engine.model.Codec`.

    Attributes:
        given: the codec, whole.
    """

    def __init__(self, codec: Convolutional, mesh: Mesh):
        self.given, self.mesh = codec, mesh
        self.frames_per_latent = codec.frames_per_latent
        self.made: dict[int, tuple[Cut, Convolutional]] = {}

    def decode(
        self, latents: Tensor, states: Sequence[StripState | None] | None = None
    ) -> tuple[Tensor | list[Tensor], Any]:
        """As the codec's: latents [N, F, C, h, w] -> uint8 frames [N, T, H, W, 3], whole on every rank, and states."""
        rows = latents.shape[-2]
        if rows < self.mesh.ranks:
            return self.given.decode(latents, states)  # type: ignore[arg-type]
        cut, codec = self.of(rows)
        made, left = codec.decode(cut.own(latents, -2), unpacked(states, rows))
        return joined(cut, FRAMES, made, -3), packed(left, rows)

    def encode(
        self, frames: Tensor, states: Sequence[StripState | None] | None = None
    ) -> tuple[Tensor | list[Tensor], Any]:
        """As the codec's: uint8 frames [N, T, H, W, 3] -> latents [N, F, C, h, w], whole on every rank, and states."""
        rows, left_over = divmod(frames.shape[-3], scale_of(self.given))
        if rows < self.mesh.ranks or left_over:
            return self.given.encode(frames, states)  # type: ignore[arg-type]
        cut, codec = self.of(rows)
        made, left = codec.encode(cut.own(frames, -3), unpacked(states, rows))
        return joined(cut, LATENTS, made, -2), packed(left, rows)

    def whole(self, state: Any) -> Any:
        """A world's decoding state as one rank has it, of all ranks' strips; all ranks call together."""
        if not isinstance(state, StripState):
            return state
        return self.of(state.rows)[0].whole(STATE, state.parts, -2)

    def share(self, state: Any) -> Any:
        """This rank's strip of a world's whole decoding state, whose first part has the latents' size."""
        if not isinstance(state, list) or state[0].shape[-2] < self.mesh.ranks:
            return state
        rows = state[0].shape[-2]
        return StripState(rows, [self.of(rows)[0].own(x, -2).clone() for x in state])

    def of(self, rows: int) -> tuple[Cut, Convolutional]:
        """How pictures of so many latent rows are cut, and the codec of this rank's strip."""
        if rows not in self.made:
            cut = Cut.of(self.mesh, rows)
            self.made[rows] = cut, on_strip(self.given, cut)
        return self.made[rows]


def spread(codec: Any, mesh: Mesh) -> Any:
    """A codec that works on all ranks of a mesh at once; on one rank, the codec.

    Raises:
        ValueError: it is none of ours.
    """
    if mesh.ranks == 1 or isinstance(codec, Preview):
        return codec
    if isinstance(codec, MagiVae):
        return TileCodec(codec, mesh)
    if isinstance(codec, Convolutional):
        return StripCodec(codec, mesh)
    raise ValueError(
        f"a {type(codec).__name__} cannot be spread over ranks: expected an AutoEncoder, WanVae, Taehv, MagiVae or "
        "Preview"
    )


def alone(codec: Any) -> Any:
    """The codec as it was before it was spread, for what one rank does by itself."""
    return codec.given if isinstance(codec, StripCodec | TileCodec | CodecBeside) else codec


def whole_state(codec: Any, state: Any) -> Any:
    """A world's codec state as one rank has it, whatever the codec; all ranks call together."""
    return codec.whole(state) if isinstance(codec, StripCodec | CodecBeside) else state


def shared_state(codec: Any, state: Any) -> Any:
    """What this rank keeps of a whole codec state."""
    return codec.share(state) if isinstance(codec, StripCodec | CodecBeside) else state


def scale_of(codec: Convolutional) -> int:
    """Pixels of a latent's height."""
    if isinstance(codec, WanVae):
        return codec.spec.scale
    return SCALE if isinstance(codec, AutoEncoder) else codec.scale


def joined(cut: Cut, name: str, strips: Tensor | list[Tensor], dim: int) -> Tensor | list[Tensor]:
    """Whole pictures of one tensor of strips, or of some."""
    if isinstance(strips, Tensor):
        return cut.whole(name, [strips], dim)[0]
    return cut.whole(name, strips, dim)


def unpacked(states: Sequence[StripState | None] | None, rows: int) -> list[list[Tensor] | None] | None:
    """The codec's own states.

    Raises:
        ValueError: one is of another height.
    """
    if states is None:
        return None
    for state in states:
        if state is not None and state.rows != rows:
            raise ValueError(
                f"a streaming state of {state.rows} rows for {rows}: a world's size cannot change. Open a new one"
            )
    return [None if state is None else state.parts for state in states]


def packed(states: Sequence[list[Tensor] | None] | None, rows: int) -> list[StripState | None] | None:
    """The way back from `unpacked`."""
    if states is None:
        return None
    return [None if state is None else StripState(rows, state) for state in states]
