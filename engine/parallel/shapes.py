"""What the passes of a block attend to, and what a denoiser's layers are made of: the numbers that costs are made of.

All is counted in latent frames; a latent frame is `Sizes.tokens` tokens. Knows spec and stages, no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine.published import MagiSpec, WanSpec
from engine.schedule import Pass
from engine.spec import KVPolicy, WorldSpec
from engine.stages import legs, weights_at


@dataclass(frozen=True)
class Shape:
    """What one world's next block is, in latent frames.

    Attributes:
        new: of the block; of a staggered world, of each block in flight.
        history: committed ones that it sees, those that a top-k policy will choose among them.
        choices: ones that a top-k policy chooses from.
    """

    new: int
    history: int
    choices: int = 0

    def __post_init__(self) -> None:
        if self.new < 1 or self.history < 0 or self.choices < 0:
            raise ValueError(f"{self}: expected new >= 1, history >= 0 and choices >= 0 latent frames")


@dataclass(frozen=True)
class Load:
    """What one call of the denoiser attends to, over all worlds.

    Attributes:
        new: latent frames in flight, in all rows.
        history: latent frames of pages that are seen, each world's once.
        pairs: frames in flight x frames that each of them sees, summed.
        worlds: rows that choose pages of their own.
        choices: pages that are chosen from, over all worlds; 0 in passes that choose none.
        commits: latent frames that become history with this call.
        hidden: latent frames in flight that none sees: pages stand for them.
    """

    new: int
    history: int
    pairs: int
    worlds: int = 1
    choices: int = 0
    commits: int = 0
    hidden: int = 0


@dataclass(frozen=True)
class Sizes:
    """What a denoiser's layers are made of.

    Attributes:
        tokens: of a latent frame.
        width: of a token.
        heads, kv_heads, head_width: of self-attention.
        hidden: of the MLP.
        linears: multiply-adds of a token in a layer's products.
        context: tokens of the prompt or picture that a layer reads.
        weights: numbers in all matrices; biases and norms, under 0.2 %, are not counted.
        predicted: numbers that a token's prediction has.
        wide_prediction: these are float32, whatever the precision of the rest.
        features: numbers of a token that heads read.
        placed: scales of a page of a stream whose places stay within a rank: a Matrix-Game's mouse, over its layers.
        placed_layers: how many these are.
    """

    layers: int
    tokens: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    linears: int
    context: int
    weights: int
    predicted: int
    wide_prediction: bool = False
    features: int = 0
    placed: int = 0
    placed_layers: int = 0

    @property
    def wide(self) -> int:
        """Channels of all queries, D."""
        return self.heads * self.head_width

    @property
    def narrow(self) -> int:
        """Channels of all keys, Dk."""
        return self.kv_heads * self.head_width


def sizes_of(spec: WorldSpec) -> Sizes:
    """The sizes of a world's denoiser.

    Attention over time of a Matrix-Game's action modules is not among them: it stays within a rank (see costs.py).
    """
    d, s = spec.denoiser, spec.stream
    if isinstance(d, MagiSpec):
        wide, narrow = d.heads * d.head_width, d.kv_heads * d.head_width
        first = d.ffn * (2 if d.gated else 1)
        linears = d.width * (4 * wide + 2 * narrow + first + d.ffn)
        weights = d.layers * (linears + d.width * 2 * narrow + 2 * d.condition_width * d.width)
        weights += d.text_width * (d.width + d.condition_width)
        return Sizes(
            d.layers, s.tokens, d.width, d.heads, d.kv_heads, d.head_width, first, linears, d.text_tokens, weights,
            d.out_channels * d.patch**2, wide_prediction=True,
        )  # fmt: skip
    if isinstance(d, WanSpec):
        linears = 6 * d.width**2 + 2 * d.width * d.ffn
        image = 2 * d.width**2 if d.separate_image else 0
        weights = d.layers * (linears + 2 * d.width**2 + image) + 7 * d.width**2 + d.frequencies * d.width
        weights += (d.text_width * d.width + d.width**2) if d.text_tokens else 0
        weights += (d.image_width**2 + d.image_width * d.width) if d.image_tokens else 0
        weights += (d.in_channels + d.out_channels) * d.patch**2 * d.width + action_weights(d)
        context = d.text_tokens + d.image_tokens
        mouse = [x for x in spec.streams if x.name == "mouse"]
        return Sizes(
            d.layers, s.tokens, d.width, d.heads, d.heads, d.head_width, d.ffn, linears, context, weights,
            d.out_channels * d.patch**2, placed=sum(x.layers * x.heads * (x.width + 1) for x in mouse),
            placed_layers=sum(x.layers for x in mouse),
        )  # fmt: skip
    linears, hidden = 12 * d.width**2, 4 * d.width
    weights = d.layers * (linears + 6 * d.width**2) + 7 * d.width**2 + s.tokens * d.width
    return Sizes(
        d.layers, s.tokens, d.width, d.heads, d.heads, d.head_width, hidden, linears, 0, weights,
        spec.codec.channels * d.patch**2, features=d.width,
    )  # fmt: skip


def action_weights(sizes: WanSpec) -> int:
    """Numbers in the matrices of a Matrix-Game's action modules."""
    module, width = sizes.actions, sizes.width
    if module is None:
        return 0
    inner, hidden = module.heads * module.head_width, module.hidden
    one = module.keyboard * hidden + hidden**2 + 2 * width * inner + 2 * inner * hidden * module.frames
    if module.mouse:
        one += (width + module.mouse * module.frames) * inner + 4 * inner**2 + inner * width
    return len(module.layers) * one


def action_linears(spec: WorldSpec) -> int:
    """Multiply-adds of a token in a Matrix-Game's action modules, over all layers; attention over time not counted."""
    module, width = spec.action_module, spec.denoiser.width
    if module is None:
        return 0
    inner = module.heads * module.head_width
    one = 2 * width * inner
    if module.mouse:
        one += (width + module.mouse * module.frames) * inner + 4 * inner**2 + inner * width
    return len(module.layers) * one


def shape_at(spec: WorldSpec, length: int, policy: KVPolicy | None = None) -> Shape:
    """What the block of a world with `length` latent frames of history is, under its policy or another."""
    policy = policy or spec.kv
    if spec.staggered is not None:
        return Shape(spec.block, len(policy.visible(length)))
    choices = len(policy.choices(length))
    return Shape(spec.block_at(length), len(policy.visible(length)) + min(policy.top_k, choices), choices)


def grown(shape: Shape, frames: int, policy: KVPolicy) -> Shape:
    """The shape once a world's history is so many latent frames longer, if its policy shows as many."""
    history = shape.history + frames
    return Shape(shape.new, history if policy.span is None else min(history, max(policy.span, shape.history)))


def loads(spec: WorldSpec, shapes: Sequence[Shape]) -> tuple[Load, ...]:
    """The calls of the denoiser that make one block of each of some worlds, in order.

    Raises:
        ValueError: there are no worlds.
    """
    if not shapes:
        raise ValueError("no shapes: expected one for each world, such as shape_at(spec, length)")
    if spec.staggered is None:
        count = spec.num_steps if spec.rollout is None else len(spec.rollout.steps)
        return tuple(single(shapes, chooses=i == 0, commits=i == count) for i in range(count + 1))
    made: list[Load] = []
    for step in (p for leg in legs(spec.staggered, flying=True) for p in leg.passes):
        made += staggered(spec, shapes, step)
        shapes = [grown(s, s.new, spec.kv) for s in shapes] if step.commit else shapes
    return tuple(made)


def single(shapes: Sequence[Shape], chooses: bool, commits: bool) -> Load:
    """One pass of one block in flight, all of which see all that the policy shows."""
    new = sum(s.new for s in shapes)
    history, pairs = sum(s.history for s in shapes), sum(s.new * (s.new + s.history) for s in shapes)
    choices = sum(s.choices for s in shapes) if chooses else 0
    return Load(new, history, pairs, len(shapes), choices, new if commits else 0)


def rewriting(spec: WorldSpec, policy: KVPolicy, length: int, latents: int, origin: int = 0) -> Load:
    """The call that passes a world's last clean latents once more under a new prompt (see `Runner.rewrite`).

    Args:
        length, origin: of its history.
        latents: how many it keeps.
    """
    start = length - latents
    whole = start <= origin or (spec.rollout is not None and spec.rollout.rewrite == "all")
    skip = 0 if whole else policy.sink
    seen = KVPolicy(policy.window, policy.sink).visible(length, start if whole else origin)
    commits = sum(p >= start + skip for p in seen)
    return Load(latents, skip, latents * latents, commits=commits, hidden=skip)


def staggered(spec: WorldSpec, shapes: Sequence[Shape], step: Pass) -> list[Load]:
    """The calls of one pass of several blocks in flight, each of which sees a range (stages.py, magi_guidance.py)."""
    assert spec.staggered is not None
    assert isinstance(step.level, tuple)
    guidance, reach, copies, alone = spec.staggered.guidance, list(step.reach), 1, 0
    if guidance is not None:
        weights = [weights_at(t, guidance) for t in step.level]
        copies, alone = 1 + any(text for _, text in weights), sum(history != 1 for history, _ in weights)
    else:
        oldest = int(step.commit)  # a finished block in front
        near = oldest < len(reach) and step.level[oldest] > spec.staggered.near_clean
        reach += [1] if near else []
    new = copies * len(reach) * sum(s.new for s in shapes)
    pairs = copies * sum(seen_pairs(s, reach) for s in shapes)
    history, frames = sum(s.history for s in shapes), sum(s.new for s in shapes)
    made = [Load(new, history, pairs, len(shapes), commits=frames if step.commit else 0)]
    if alone:
        made.append(Load(alone * frames, 0, alone * sum(s.new**2 for s in shapes), alone * len(shapes)))
    return made


def seen_pairs(shape: Shape, reach: Sequence[int | None]) -> int:
    """Frames x frames seen of blocks in flight, each of which sees so many blocks that end with itself."""
    stops = accumulate([shape.new] * len(reach), initial=shape.history)
    next(stops)
    seen = [stop if r is None else min(stop, r * shape.new) for stop, r in zip(stops, reach, strict=True)]
    return shape.new * sum(seen)
