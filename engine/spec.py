"""What a world is: sizes, named variables, history, schedule. Values only, no tensors that learn.

A spec is frozen, compares by value and round-trips through JSON (`to_dict`, `from_dict`): it is what a shipped
world's card holds. Knows numpy; imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from engine.actions import ActionSpec, action_spec
from engine.published import ActionModule, Guidance, MagiSpec, MagiVaeSpec, Rollout, Staggered, WanSpec, WanVaeSpec


@dataclass(frozen=True)
class VariableSpec:
    """A named number that the world carries beside its frames, such as health.

    Attributes:
        low, high: range; the model sees it scaled to [-1, 1].
        deltas: the changes a step can make; a head predicts a distribution over them.
    """

    name: str
    low: float
    high: float
    deltas: tuple[float, ...] = (0.0,)

    def scale(self, values: np.ndarray) -> np.ndarray:
        return (values - self.low) / max(self.high - self.low, 1e-6) * 2 - 1


@dataclass(frozen=True)
class KVStream:
    """K/V that a model caches: one page holds one latent frame in one layer, [tokens, heads, width].

    Attributes:
        name: by which the model asks for it; "self" is the self-attention's.
        relative: keys are kept before they are turned by their rotary positions, which then count from the start of
            what a block sees.
    """

    layers: int
    tokens: int
    heads: int
    width: int
    name: str = "self"
    relative: bool = False

    def page_bytes(self, itemsize: int) -> int:
        """Bytes of one latent frame over all layers, keys and values."""
        return 2 * self.layers * self.tokens * self.heads * self.width * itemsize


@dataclass(frozen=True)
class KVPolicy:
    """Which latent frames of history a block may see, and which a world keeps for later blocks.

    Attributes:
        window: the last `window` before the block; None for the whole history.
        sink: the first `sink` of all.
        pages: these positions too, once they have left the window.
        top_k: further ones, chosen in every layer by how well the block's queries match a page's mean key (the
            scheme of Quest, Tang et al. 2024, with means for bounds), out of the last `memory` before the window.
        memory: how many latent frames before the window are kept for `top_k` to choose from.
    """

    window: int | None = 12
    sink: int = 0
    pages: tuple[int, ...] = ()
    top_k: int = 0
    memory: int = 0

    def __post_init__(self) -> None:
        if self.sink < 0 or (self.window is not None and self.window < 0):
            raise ValueError(f"window {self.window}, sink {self.sink}: expected window >= 0 or None, and sink >= 0")
        if any(p < 0 for p in self.pages) or list(self.pages) != sorted(set(self.pages)):
            raise ValueError(f"pages {self.pages}: expected positions from 0 on, ascending, each once")
        if not 0 <= self.top_k <= self.memory:
            raise ValueError(f"top_k {self.top_k}, memory {self.memory}: expected 0 <= top_k <= memory")
        if self.window is None and (self.sink or self.pages or self.memory):
            raise ValueError("window None shows the whole history: sink, pages, top_k and memory need a window")

    def visible(self, length: int, origin: int = 0) -> list[int]:
        """Positions that a block starting at latent frame `length` always sees, ascending.

        Args:
            origin: where the history begins, if what came before was given up.
        """
        if self.window is None:
            return list(range(origin, length))
        recent = max(origin, length - self.window)
        early = set(range(origin, min(origin + self.sink, recent))) | {p for p in self.pages if origin <= p < recent}
        return [*sorted(early), *range(recent, length)]

    def choices(self, length: int) -> list[int]:
        """Positions that `top_k` chooses from, ascending."""
        if not self.memory or self.window is None:
            return []
        recent, always = max(0, length - self.window), set(self.visible(length))
        return [p for p in range(max(0, recent - self.memory), recent) if p not in always]

    @property
    def early(self) -> int:
        """The most latent frames before the window that a world keeps."""
        return self.sink + len(self.pages) + self.memory

    @property
    def span(self) -> int | None:
        """The most latent frames of history that a block can see; None where there is no limit."""
        return None if self.window is None else self.sink + len(self.pages) + self.top_k + self.window


@dataclass(frozen=True)
class DenoiserSpec:
    """Sizes of an ActionDiT."""

    width: int = 256
    layers: int = 6
    heads: int = 4
    patch: int = 2
    rope_base: float = 100.0

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class CodecSpec:
    """Sizes of an AutoEncoder: latent channels, widths at 1/2, 1/4 and 1/8 of the frame, blocks at each."""

    channels: int = 16
    widths: tuple[int, int, int] = (48, 64, 128)
    depth: int = 2
    scale: int = 8


@dataclass(frozen=True)
class WorldSpec:
    """Everything about a world but its weights.

    Its denoiser is an ActionDiT with an AutoEncoder and heads, trained here, or a published Wan2.1-family model.

    Attributes:
        frame: (H, W) in pixels.
        fps: frames a second in real time.
        block: latent frames denoised together in one step.
        num_steps: denoising passes of a block; a commit pass follows.
        shift: warps the passes' noise levels towards high noise (1 leaves them evenly spaced).
        context_noise: noise level at which a finished block is committed to the cache.
        rollout: how a published few-step model is rolled out, in place of num_steps, shift and context_noise.
        staggered: the same of a model that has several blocks in flight.
    """

    name: str
    frame: tuple[int, int]
    fps: float
    actions: ActionSpec
    variables: tuple[VariableSpec, ...] = ()
    codec: CodecSpec | WanVaeSpec | MagiVaeSpec = field(default_factory=CodecSpec)
    denoiser: DenoiserSpec | WanSpec | MagiSpec = field(default_factory=DenoiserSpec)
    kv: KVPolicy = field(default_factory=KVPolicy)
    block: int = 1
    num_steps: int = 2
    shift: float = 2.0
    context_noise: float = 0.1
    rollout: Rollout | None = None
    staggered: Staggered | None = None

    def __post_init__(self) -> None:
        cell = self.codec.scale * self.denoiser.patch
        if any(side % cell for side in self.frame):
            raise ValueError(f"frame size {self.frame}: both sides must be multiples of {cell} (codec scale x patch)")
        if self.denoiser.width % (2 * self.denoiser.heads):
            raise ValueError(f"width {self.denoiser.width} must divide into {self.denoiser.heads} heads of even width")
        if self.num_steps < 1 or not 0 <= self.context_noise < 1 or self.block < 1:
            raise ValueError("num_steps and block must be at least 1, context_noise in [0, 1)")

    @property
    def latent(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent frame."""
        return (self.codec.channels, self.frame[0] // self.codec.scale, self.frame[1] // self.codec.scale)

    @property
    def stream(self) -> KVStream:
        """The K/V stream of the denoiser's self-attention."""
        _, h, w = self.latent
        d = self.denoiser
        relative = self.rollout is not None and self.rollout.relative
        return KVStream(d.layers, h // d.patch * (w // d.patch), d.kv_heads, d.head_width, relative=relative)

    @property
    def published(self) -> bool:
        """Whether this is a published model, steered by a context."""
        return self.rollout is not None or self.staggered is not None

    @property
    def streams(self) -> tuple[KVStream, ...]:
        """All K/V streams: the self-attention's, and Matrix-Game's memories of mouse and keyboard."""
        made, module = [self.stream], self.action_module
        if module is not None:
            layers, heads, width = len(module.layers), module.heads, module.head_width
            if module.mouse:
                made.append(KVStream(layers, self.stream.tokens, heads, width, "mouse"))
            if module.keyboard:
                made.append(KVStream(layers, 1, heads, width, "keyboard"))
        return tuple(made)

    @property
    def action_module(self) -> ActionModule | None:
        """Matrix-Game's, if the denoiser has one."""
        return self.denoiser.actions if isinstance(self.denoiser, WanSpec) else None

    @property
    def frames_per_latent(self) -> int:
        return 1 if isinstance(self.codec, CodecSpec) else self.codec.frames_per_latent

    def frames_upto(self, length: int) -> int:
        """Frames of the first `length` latent frames of a world: a causal video codec's first one is a single frame."""
        if isinstance(self.codec, MagiVaeSpec):
            return length * self.frames_per_latent
        return max(0, 1 + (length - 1) * self.frames_per_latent) if length else 0

    def block_at(self, length: int) -> int:
        """Latent frames of the block that begins at latent frame `length`."""
        first = self.rollout.first_block if self.rollout else None
        return first if first is not None and length == 0 else self.block

    def frames_at(self, length: int) -> int:
        """Frames of the block that begins at latent frame `length`; a step's actions may be as many."""
        return self.frames_upto(length + self.block_at(length)) - self.frames_upto(length)

    def encode_variables(self, values: np.ndarray) -> np.ndarray:
        """Raw values [..., V] -> float32 [..., V], each scaled to [-1, 1] over its range."""
        if not self.variables:
            return np.zeros((*np.shape(values)[:-1], 0), np.float32)
        columns = [v.scale(np.asarray(values)[..., i]) for i, v in enumerate(self.variables)]
        return np.stack(columns, axis=-1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorldSpec:
        """Rebuild a spec from plain JSON.

        Raises:
            ValueError: a field is missing or unknown.
        """
        try:
            return cls(
                **{
                    **data,
                    "frame": tuple(data["frame"]),
                    "actions": action_spec(data["actions"]),
                    "variables": tuple(
                        VariableSpec(**{**v, "deltas": tuple(v["deltas"])}) for v in data.get("variables", ())
                    ),
                    "codec": codec_spec(data["codec"]),
                    "denoiser": denoiser_spec(data["denoiser"]),
                    "rollout": rollout_of(data.get("rollout")),
                    "staggered": staggered_of(data.get("staggered")),
                    "kv": KVPolicy(**{**data["kv"], "pages": tuple(data["kv"].get("pages", ()))}),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no world spec: {error}") from None


def codec_spec(data: Mapping[str, Any]) -> CodecSpec | WanVaeSpec | MagiVaeSpec:
    """A codec's sizes from plain JSON."""
    if data.get("kind") == "magi-vae":
        return MagiVaeSpec(**{**data, "grid": tuple(data["grid"])})
    if data.get("kind") == "wan-vae":
        return WanVaeSpec(**{**data, "multiples": tuple(data["multiples"])})
    return CodecSpec(**{**data, "widths": tuple(data["widths"])})


def denoiser_spec(data: Mapping[str, Any]) -> DenoiserSpec | WanSpec | MagiSpec:
    """A denoiser's sizes from plain JSON."""
    if data.get("kind") == "magi":
        return MagiSpec(**data)
    if data.get("kind") != "wan":
        return DenoiserSpec(**data)
    module = data.get("actions")
    actions = module and ActionModule(**{**module, "layers": tuple(module["layers"])})
    return WanSpec(**{**data, "actions": actions})


def rollout_of(data: Mapping[str, Any] | None) -> Rollout | None:
    """A published model's rollout from plain JSON."""
    if data is None:
        return None
    restart = data.get("restart")
    return Rollout(**{**data, "steps": tuple(data["steps"]), "restart": restart and tuple(restart)})


def staggered_of(data: Mapping[str, Any] | None) -> Staggered | None:
    """A staggered rollout from plain JSON."""
    if data is None:
        return None
    guidance = data.get("guidance")
    made = guidance and Guidance(**{name: tuple(x) for name, x in guidance.items()})
    return Staggered(**{**data, "ranges": tuple(data["ranges"]), "guidance": made})
