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
    def kv_heads(self) -> int:
        return self.heads

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


@dataclass(frozen=True)
class Guidance:
    """Weights of the three predictions that MAGI-1's base models are guided by, from noise (0) to clean (1).

    Attributes:
        times: where each range of times begins.
        history: weight of what the blocks before tell, over what a block tells alone, in each range.
        text: weight of the prompt, over no prompt, in each range.
    """

    times: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    history: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not len(self.times) == len(self.history) == len(self.text) > 0 or list(self.times) != sorted(self.times):
            raise ValueError(f"guidance {self}: expected rising times, and as many weights of history and of text")


@dataclass(frozen=True)
class Staggered:
    """How MAGI-1 is rolled out: several blocks in flight, each further from noise than the one behind it.

    Attributes:
        num_steps: denoising steps of a block.
        window: blocks in flight; a new one enters every num_steps / window passes.
        ranges: blocks that a block sees, itself among them, in each of as many stretches of its steps, from noise to
            clean; () for all that there are.
        clean_range: the same of a finished block, whose keys and values become history; None for all.
        clean_time: the time that a finished block is told.
        guidance: of base models; None for distilled ones, which need no second prediction.
        near_clean: distilled: the time past which the oldest block is predicted once more, seeing only itself.
        near_clean_weight: of the prediction that sees the blocks before; the rest is the other's.
        shortcut: which 12 of 16 steps are taken where num_steps is 12.
    """

    num_steps: int = 64
    window: int = 4
    ranges: tuple[int, ...] = (5, 4, 3, 2)
    clean_range: int | None = 1
    clean_time: float = 0.9999
    guidance: Guidance | None = None
    near_clean: float = 0.3
    near_clean_weight: float = 0.7
    shortcut: str = "8,16,16"

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.window < 1 or self.num_steps % self.window:
            raise ValueError(f"num_steps {self.num_steps}, window {self.window}: expected whole passes a block")
        if self.ranges and (self.num_steps % len(self.ranges) or min(self.ranges) < 1):
            raise ValueError(
                f"ranges {self.ranges}: expected counts from 1 on, as many as divide num_steps {self.num_steps}"
            )
        if self.shortcut not in ("8,16,16", "16,16,8"):
            raise ValueError(f"shortcut {self.shortcut!r}: expected '8,16,16' or '16,16,8'")

    @property
    def reach(self) -> int | None:
        """Finished blocks that any block in flight can see, once as many are in flight as there can be; None: all."""
        if not self.ranges or self.clean_range is None:
            return None
        return max(self._beyond(i, self.window) for i in range(self.num_steps))

    @property
    def most(self) -> int | None:
        """The same of the first block of all, which has none in flight before it."""
        return None if self.reach is None else max(self.ranges) - 1

    def range_at(self, index: int) -> int | None:
        """Blocks that a block at a step of its schedule sees."""
        return self.ranges[index * len(self.ranges) // self.num_steps] if self.ranges else None

    def _beyond(self, index: int, window: int) -> int:
        """Blocks before all in flight that a block at a step of its schedule sees."""
        older = window - 1 - index // (self.num_steps // window)
        return max(0, (self.range_at(index) or 0) - 1 - older)


@dataclass(frozen=True)
class MagiSpec:
    """Sizes of a MAGI-1 denoiser (Sand AI, 2025); by default of the 4.5B one.

    Attributes:
        width, ffn, layers: of the transformer.
        heads, head_width: of queries; every kv head serves `heads / kv_heads` of them.
        condition_width: of what the gates are made of: time, step size, dropped prompt.
        in_channels, out_channels: of patches, twice the latent's where `doubled`.
        doubled: latents are shown twice, and the second half of the prediction is dropped (24B).
        rescale: latents are multiplied by it, predictions divided.
        gated: SwiGLU in place of GELU (24B).
        text_width, text_tokens: of a prompt's embeddings; most tokens of one.
        frequencies: width of the time's sinusoid.
        distill: the step size is embedded too.
        fp8: layers 1 .. L-2 are quantised.
    """

    width: int = 3072
    ffn: int = 12288
    layers: int = 34
    heads: int = 24
    kv_heads: int = 8
    head_width: int = 128
    condition_width: int = 768
    in_channels: int = 16
    out_channels: int = 16
    doubled: bool = False
    rescale: float = 1.0
    gated: bool = False
    text_width: int = 4096
    text_tokens: int = 800
    frequencies: int = 256
    distill: bool = False
    fp8: bool = False
    patch: int = 2
    eps: float = 1e-6
    kind: str = "magi"

    def __post_init__(self) -> None:
        # The published code joins the two attentions in eight groups of channels.
        if self.heads % self.kv_heads or self.heads * self.head_width % 8 or self.head_width % 8:
            raise ValueError(
                f"{self.heads} heads of width {self.head_width} over {self.kv_heads} kv heads: expected a multiple of "
                "the kv heads, and a width that is a multiple of 8"
            )
        if self.doubled and (self.in_channels % 2 or self.out_channels < self.in_channels // 2):
            raise ValueError(f"{self.in_channels} channels in and {self.out_channels} out cannot be doubled latents")

    @property
    def latent_channels(self) -> int:
        return self.in_channels // 2 if self.doubled else self.in_channels

    @property
    def bands(self) -> int:
        """Rotary frequencies of each axis: of a head's channels three quarters turn."""
        return self.head_width // 8


@dataclass(frozen=True)
class MagiVaeSpec:
    """Sizes of MAGI-1's VAE, a vision transformer on either side.

    Attributes:
        channels: of a latent.
        width, heads, layers, hidden: of each transformer; `hidden` is its MLP's.
        grid: latents in time, height and width that the position tables were trained on; others are interpolated.
        scale, frames_per_latent: pixels, and frames, of a latent's patch.
        factor: what latents are multiplied by for about unit variance.
    """

    channels: int = 16
    width: int = 1024
    heads: int = 16
    layers: int = 24
    hidden: int = 4096
    grid: tuple[int, int, int] = (4, 32, 32)
    scale: int = 8
    frames_per_latent: int = 4
    factor: float = 0.18215
    kind: str = "magi-vae"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads")

    @property
    def patch(self) -> int:
        """Pixels of a patch in all its frames."""
        return self.frames_per_latent * self.scale**2
