"""Sizes and operations of published models by formula, from their specs alone. benchmarks/plan.py checks them."""

from __future__ import annotations

from engine.models.wan import flops
from engine.published import ActionModule, WanSpec
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
