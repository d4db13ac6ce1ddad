"""What published models are: sizes of Wan2.1-family denoisers, their action modules and codecs. Values only.

Sizes are read from a checkpoint's shapes (checkpoints.py); what no weight tells (window, sinks, steps, shift) is a
preset's (presets.py). Imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ActionModule:
    """Matrix-Game 2's action module: which layers have one, and its sizes.

    Attributes:
        layers: indices of the transformer layers that have a module.
        hidden: width of the embedding of one frame's keys.
        heads, head_width: of its attention over time.
        keyboard: keys, multi-hot.
        mouse: mouse values; 0 where the model has no mouse.
        frames_per_latent: pixel frames of a latent frame.
        window: latent frames whose pixel frames' actions each latent frame is shown.
        rope_base, rope_width: rotary base, and how many of a head's channels turn with time.
    """

    layers: tuple[int, ...]
    hidden: int = 128
    heads: int = 16
    head_width: int = 64
    keyboard: int = 4
    mouse: int = 2
    frames_per_latent: int = 4
    window: int = 3
    rope_base: float = 256.0
    rope_width: int = 8

    @property
    def frames(self) -> int:
        """Pixel frames whose actions a latent frame is shown."""
        return self.frames_per_latent * self.window


@dataclass(frozen=True)
class WanSpec:
    """Sizes of a Wan2.1 denoiser.

    Attributes:
        width, ffn, heads, layers: of the transformer.
        in_channels: latent channels and those concatenated to them (masks, image latents).
        out_channels: latent channels.
        frequencies: width of the timestep's sinusoid.
        text_width, text_tokens: of the prompt's embeddings; 0 tokens where there is no text.
        image_width, image_tokens: of the CLIP features; 0 tokens where there are none.
        actions: Matrix-Game's module.
        published: compute rotary angles and the sinusoid in float64 as the published code does; False in float32.
    """

    width: int = 1536
    ffn: int = 8960
    heads: int = 12
    layers: int = 30
    in_channels: int = 16
    out_channels: int = 16
    frequencies: int = 256
    text_width: int = 4096
    text_tokens: int = 512
    image_width: int = 1280
    image_tokens: int = 0
    actions: ActionModule | None = None
    patch: int = 2
    rope_base: float = 10_000.0
    eps: float = 1e-6
    published: bool = True
    kind: str = "wan"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must divide into {self.heads} heads of even width")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def separate_image(self) -> bool:
        """Whether cross-attention has keys and values of its own for the image (Wan2.1 I2V)."""
        return bool(self.image_tokens and self.text_tokens)


@dataclass(frozen=True)
class WanVaeSpec:
    """Sizes of a Wan2.1 VAE: latent channels, base width and its multiples, blocks at each level.

    Attributes:
        tiny: decode with TAEHV, which is 25 times cheaper and softer.
    """

    channels: int = 16
    width: int = 96
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    depth: int = 2
    scale: int = 8
    frames_per_latent: int = 4
    tiny: bool = False
    kind: str = "wan-vae"


@dataclass(frozen=True)
class Rollout:
    """How a published few-step model is rolled out: what no weight tells.

    Attributes:
        steps: configured timesteps out of `training_steps`.
        warp: look them up in the shifted table (so that 750 becomes 937.5 at shift 5); else they are used as given.
        shift: of the noise schedule.
        context: timestep of the pass that writes the cache.
        first_block: latent frames of a world's first block, where it differs from the others.
        relative: positions count from the start of the window (LongLive's variant for endless videos).
        rewrite: what a new prompt does to the history: "" leaves it, "window" passes the window's clean latents
            once more with the new prompt and keeps the sinks, "all" rewrites the sinks too (LongLive).
        restart: (length, overlap): after `length` latent frames begin anew from the last `overlap` (CausVid).
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    warp: bool = True
    shift: float = 5.0
    context: float = 0.0
    first_block: int | None = None
    relative: bool = False
    rewrite: str = ""
    restart: tuple[int, int] | None = None
    training_steps: int = 1000

    def __post_init__(self) -> None:
        if self.rewrite not in ("", "window", "all"):
            raise ValueError(f"rewrite {self.rewrite!r}: expected '', 'window' or 'all'")
        if not self.steps or any(not 0 < s <= self.training_steps for s in self.steps):
            raise ValueError(f"steps {self.steps}: expected some from 1 to {self.training_steps}")
        if list(self.steps) != sorted(set(self.steps), reverse=True):
            raise ValueError(f"steps {self.steps}: expected them falling, each once")
