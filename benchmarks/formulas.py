"""Sizes and operations of published models by formula, from their specs alone. benchmarks/plan.py checks them."""

from __future__ import annotations

from collections.abc import Sequence

from engine.models.wan import flops
from engine.published import ActionModule, MagiSpec, MagiVaeSpec, WanSpec
from engine.scenes import SETTLED
from engine.spec import KVStream, WorldSpec


def parameters(sizes: WanSpec) -> int:
    """Parameters of a denoiser, by its sizes."""
    d, image = sizes.width, sizes.image_width
    attention = 4 * linear(d, d) + 2 * d
    layer = 2 * attention + linear(d, sizes.ffn) + linear(sizes.ffn, d) + 8 * d
    if sizes.separate_image:
        layer += 2 * linear(d, d) + d
    total = sizes.layers * layer + linear(sizes.in_channels * sizes.patch**2, d)
    total += linear(sizes.frequencies, d) + linear(d, d) + linear(d, 6 * d)
    total += linear(d, sizes.out_channels * sizes.patch**2) + 2 * d
    if sizes.text_tokens:
        total += linear(sizes.text_width, d) + linear(d, d)
    if sizes.image_tokens:
        total += linear(image, image) + linear(image, d) + 2 * image + 2 * d
    return total + (len(sizes.actions.layers) * action_parameters(sizes.actions, d) if sizes.actions else 0)


def action_parameters(module: ActionModule, d: int) -> int:
    """Parameters of one action module on tokens of width d."""
    inner, hidden = module.heads * module.head_width, module.hidden
    total = linear(module.keyboard, hidden) + linear(hidden, hidden)
    total += 2 * d * inner + 2 * inner * hidden * module.frames
    if module.mouse:
        total += linear(d + module.mouse * module.frames, inner) + linear(inner, inner) + 2 * inner
        total += 3 * inner**2 + inner * d
    return total


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a product with a bias."""
    return (inputs + 1) * outputs


def page_bytes(stream: KVStream, itemsize: int, kv_dtype: str | None) -> int:
    """Bytes of one latent frame over all layers of a stream; 8-bit codes have scales of 2 bytes, one a channel of the
    keys and one a head of the values."""
    if kv_dtype is None:
        return stream.page_bytes(itemsize)
    return stream.page_bytes(1) + 2 * stream.layers * stream.heads * (stream.width + 1)


def context_bytes(spec: WorldSpec, itemsize: int) -> int:
    """Bytes of a prompt's or a picture's keys and values, and of what stands beside the latents (float32)."""
    sizes = spec.denoiser
    assert isinstance(sizes, WanSpec)
    _, h, w = spec.latent
    beside = (sizes.in_channels - sizes.out_channels) * SETTLED * h * w * 4
    return 2 * sizes.layers * (sizes.text_tokens + sizes.image_tokens) * sizes.width * itemsize + beside


def attention_flops(spec: WorldSpec, history: int) -> tuple[int, int]:
    """Of one pass of one world: operations of attention to latent frames, and of that to a prompt or picture.

    The first is what one more latent frame of history costs, times the visible ones.
    """
    sizes, tokens, frames = spec.denoiser, spec.stream.tokens, spec.block
    assert isinstance(sizes, WanSpec)
    one_more = flops(sizes, tokens, frames, history + 1) - flops(sizes, tokens, frames, history)
    cross = 4 * sizes.layers * frames * tokens * sizes.width * (sizes.text_tokens + sizes.image_tokens)
    return one_more * (frames + history), cross


# ---- MAGI-1


def magi_parameters(sizes: MagiSpec) -> int:
    """Parameters of a MAGI-1 denoiser, by its sizes; scales of fp8 weights are none."""
    return sum(sum(magi_numbers(sizes)[name]) for name in ("wide", "narrow"))


def magi_numbers(sizes: MagiSpec) -> dict[str, tuple[int, ...]]:
    """Parameters that stay float32 ("wide"), and those that do not ("narrow"): of one layer's, of the rest."""
    d, c, text = sizes.width, sizes.condition_width, sizes.text_width
    queries, keys = sizes.heads * sizes.head_width, sizes.kv_heads * sizes.head_width
    attention = 2 * queries * d + 2 * keys * d + 2 * keys * d + 2 * queries * d
    narrow = attention + magi_mlp(sizes) + linear(c, 2 * d) + 4 * d + 4 * sizes.head_width
    wide = 4 * d + 4 * sizes.head_width
    patches = (sizes.in_channels + sizes.out_channels) * sizes.patch**2 * d
    embedders = linear(sizes.frequencies, c) + linear(c, c) + linear(text, d) + linear(text, c)
    rest = patches + embedders + sizes.text_tokens * text + sizes.bands + 2 * d
    return {"wide": (sizes.layers * wide, rest), "narrow": (sizes.layers * narrow,)}


def magi_mlp(sizes: MagiSpec) -> int:
    """Parameters of one layer's MLP, which has no biases."""
    return sizes.width * sizes.ffn * (3 if sizes.gated else 2)


def magi_weight_bytes(sizes: MagiSpec, itemsize: int) -> int:
    """Bytes of a denoiser's parameters and, where its layers but the first and last are quantised, of their scales."""
    numbers = magi_numbers(sizes)
    total = 4 * sum(numbers["wide"]) + itemsize * sum(numbers["narrow"])
    if not sizes.fp8:
        return total
    d, queries, keys = sizes.width, sizes.heads * sizes.head_width, sizes.kv_heads * sizes.head_width
    coded = 2 * queries * d + 2 * keys * d + 2 * queries * d + magi_mlp(sizes)
    scales = 5 * (1 + d) + 2 * 2 + 2 * queries + sizes.ffn  # q, qx, k, v, fc1; the projection, fc2
    return total + (sizes.layers - 2) * (coded * (1 - itemsize) + 4 * scales)


def magi_context_bytes(sizes: MagiSpec, tokens: int, itemsize: int) -> int:
    """Bytes of all layers' keys and values of a text; those keys are normed in the model's precision."""
    return 2 * sizes.layers * tokens * sizes.kv_heads * sizes.head_width * itemsize


def magi_flops(
    sizes: MagiSpec, tokens: int, frames: int, rows: int, keys: Sequence[int], texts: int
) -> tuple[int, int, int]:
    """Operations of one run of a denoiser: of products, of attention to chunks, of attention to texts.

    Args:
        tokens: of a latent frame.
        frames: latent frames of a chunk.
        rows: of the batch.
        keys: chunks that each chunk in flight sees, itself among them.
        texts: tokens of the texts of all chunks of all rows.
    """
    d, c, chunk = sizes.width, sizes.condition_width, frames * tokens
    queries, narrow = sizes.heads * sizes.head_width, sizes.kv_heads * sizes.head_width
    count = rows * len(keys) * chunk
    layer = count * (d * (4 * queries + 2 * narrow) + magi_mlp(sizes)) + rows * len(keys) * c * 2 * d
    patches = count * d * (sizes.in_channels + sizes.out_channels) * sizes.patch**2
    embedded = rows * len(keys) + (1 if sizes.distill else 0)
    steer = embedded * (sizes.frequencies * c + c**2) + 2 * sizes.text_width * c
    attention = 2 * queries * chunk * rows * sum(keys) * chunk
    return (
        2 * (sizes.layers * layer + patches + steer),
        2 * sizes.layers * attention,
        2 * sizes.layers * 2 * queries * chunk * texts,
    )


def magi_decode_flops(sizes: MagiVaeSpec, tiles: Sequence[tuple[int, int, int]]) -> int:
    """Operations of decoding tiles of so many latents in time, height and width."""
    d, total = sizes.width, 0
    for t, h, w in tiles:
        places, tokens = t * h * w, 1 + t * h * w
        layer = tokens * (4 * d**2 + 2 * d * sizes.hidden) + 2 * tokens**2 * d
        pixels = places * sizes.patch
        total += 2 * (sizes.layers * layer + places * sizes.channels * d + pixels * 27 * (d // sizes.patch) * 3)
    return total
