"""paged_attend: the block's queries over pages of history, read in place, and then over the block's own keys.

Instead of copying a world's pages together, a kernel follows its row of a page table: one call a layer for worlds of
any ages. Three implementations of one signature (`PagedKernel`): flash-attn, a Triton kernel (paged_kernel.py) and a
plain reference. `choose` names the one for a device, precision and page, once. Knows tensors; nothing of pools, views
or policies.

(FlexAttention is not offered: on CUDA it is compiled by Triton too, so it runs nowhere that the kernel here does not,
and it reads no codes with a scale a channel.)

Legend: N worlds, T pages of a table, P pages of the pool, S tokens of a page, h heads, d head width; S_q queries and
S_o own keys of the block in flight.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

# flash-attn 2 reads pages of whole tiles only ("Paged KV cache block size must be divisible by 256").
FLASH_TOKENS, FLASH_WIDTH = 256, 256


class PagedKernel(Protocol):
    """An implementation of `paged_attend`."""

    def __call__(
        self,
        q: Tensor,
        own_keys: Tensor,
        own_values: Tensor,
        keys: Tensor,
        values: Tensor,
        pages: Tensor,
        counts: Tensor,
        key_scales: Tensor | None = None,
        value_scales: Tensor | None = None,
    ) -> Tensor: ...


@cache
def choose(
    device: torch.device, dtype: torch.dtype, width: int, tokens: int, code: torch.dtype | None = None
) -> PagedKernel | None:
    """The kernel for such pages, or None where there is none: then pages are gathered.

    A world's bits differ between kernels: one engine uses one of them for everything.

    Args:
        device: where the pages lie.
        dtype: the model's precision. Kernels are there for fp16 and bf16; products in fp32 gain nothing from one.
        width: d.
        tokens: S.
        code: of 8-bit pages, torch.int8 or torch.float8_e4m3fn; None for pages in the model's precision.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    if code is None and flash_reads(device, width, tokens):
        return attend_flash
    if not find_spec("triton") or (code == torch.float8_e4m3fn and torch.cuda.get_device_capability(device) < (8, 9)):
        return None
    from engine.paged_kernel import attend_triton

    return attend_triton


def flash_reads(device: torch.device, width: int, tokens: int) -> bool:
    """Whether flash-attn is installed, and reads pages of such a size in place."""
    fits = tokens % FLASH_TOKENS == 0 and width % 8 == 0 and width <= FLASH_WIDTH
    return fits and find_spec("flash_attn") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def paged_attend(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    counts: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    kernel: PagedKernel | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over a world's pages and then its own block; no mask within either.

    Softmax and sums are in fp32. No world's result depends on another's row. Any strides will do.

    Args:
        q: queries [N, S_q, h, d].
        own_keys, own_values: of the block in flight, which are in no page yet, [N, S_o, h, d].
        keys, values: the pool's pages in one layer, [P, S, h, d]: in the queries' precision, or codes.
        pages: int32 or int64 [N, T], page numbers in logical order, filled up in front (engine.kv.paged.padded).
        counts: int32 or int64 [N], how many of the T are real: the last counts[n], from 0 to T. Others are not read.
        key_scales: of codes, [P, 1, h, d or 1]. value_scales: [P, 1, h, d or 1] (engine.kv.pages.QuantisedPages).
        kernel: what `choose` returned; by default it is asked, and the reference used where it has none.

    Returns:
        [N, S_q, h, d] in the queries' precision.

    Raises:
        ValueError: shapes, precisions or devices do not fit one another.
    """
    check(q, own_keys, own_values, keys, values, pages, counts, key_scales, value_scales)
    if kernel is None:
        code = None if key_scales is None else keys.dtype
        kernel = choose(q.device, q.dtype, q.shape[3], keys.shape[1], code) or attend_reference
    return kernel(q, own_keys, own_values, keys, values, pages, counts, key_scales, value_scales)


def check(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    counts: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> None:
    """Raise ValueError for arguments that do not fit. (Whether counts and page numbers are in range is not read.)"""
    for name, x, ndim in (("q", q, 4), ("own_keys", own_keys, 4), ("keys", keys, 4), ("pages", pages, 2)):
        if x.ndim != ndim:
            raise ValueError(f"{name} {list(x.shape)}: expected {ndim} dimensions")
    (n, _, h, d), (p, s) = q.shape, keys.shape[:2]
    fit("keys", keys, (p, s, h, d), q)
    fit("values", values, (p, s, h, d), q)
    fit("own_keys", own_keys, (n, max(1, own_keys.shape[1]), h, d), q)
    fit("own_values", own_values, tuple(own_keys.shape), q)
    fit("pages", pages, (n, pages.shape[1]), q)
    fit("counts", counts, (n,), q)
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if scales is not None:
            fit(name, scales, (p, 1, h, d if scales.shape[-1] != 1 else 1), q)
    check_precisions(q, own_keys, own_values, keys, values, key_scales, value_scales)
    if odd := [x.dtype for x in (pages, counts) if x.dtype not in (torch.int32, torch.int64)]:
        raise ValueError(f"pages or counts of {odd[0]}: expected torch.int32 or torch.int64")


def check_precisions(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    """Raise ValueError unless pages are in the queries' precision, or codes with scales."""
    codes = key_scales is not None
    if codes != (value_scales is not None) or codes != (keys.itemsize == 1) or keys.dtype != values.dtype:
        raise ValueError(
            f"{keys.dtype} keys {'with' if codes else 'without'} scales and {values.dtype} values "
            f"{'without' if value_scales is None else 'with'} scales: give both with 8-bit codes, and neither without"
        )
    plain = (own_keys, own_values) if codes else (own_keys, own_values, keys, values)
    if odd := [x.dtype for x in plain if x.dtype != q.dtype]:
        raise ValueError(f"keys or values of {odd[0]} with queries of {q.dtype}: give both in one precision")


def fit(name: str, x: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    """Raise ValueError unless a tensor has the shape that follows from the others, where the queries are."""
    if tuple(x.shape) != shape or x.device != q.device:
        raise ValueError(
            f"{name} {list(x.shape)} on {x.device} with queries {list(q.shape)} on {q.device}: "
            f"expected {list(shape)} on {q.device}"
        )


def attend_reference(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    counts: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """The same written out: pages gathered, padding masked, everything in fp32. Any device."""
    t, s = pages.shape[1], keys.shape[1]
    real = torch.arange(t, device=q.device) >= t - counts[:, None]
    seen = real.repeat_interleave(s, dim=1)
    stored = (keys, key_scales), (values, value_scales)
    past = [gathered(x, scales, pages.long()).masked_fill(~seen[..., None, None], 0) for x, scales in stored]
    k, v = (torch.cat([x, own.float()], dim=1) for x, own in zip(past, (own_keys, own_values), strict=True))
    scores = torch.einsum("nqhd,nkhd->nhqk", q.float(), k) / q.shape[-1] ** 0.5
    seen = torch.cat([seen, seen.new_ones(own_keys.shape[:2])], dim=1)
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("nhqk,nkhd->nqhd", weights, v).to(q.dtype)


def gathered(x: Tensor, scales: Tensor | None, pages: Tensor) -> Tensor:
    """fp32 [N, T S, h, d] of pages [N, T]; codes times their scales."""
    made = x[pages].float() if scales is None else x[pages].float() * scales[pages].float()
    return made.flatten(1, 2)


def attend_flash(
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    counts: Tensor,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """flash-attn over the pages and over the block, joined by their log-sum-exps. Reads no codes; see `flash_reads`.

    One split of the keys: by default their number depends on how many worlds there are, and with it the bits.
    """
    from flash_attn import flash_attn_with_kvcache

    own, own_lse = flash_attn_with_kvcache(q, own_keys, own_values, num_splits=1, return_softmax_lse=True)
    if not pages.shape[1]:
        return own
    past, past_lse = flash_attn_with_kvcache(
        q,
        keys,
        values,
        cache_seqlens=(counts * keys.shape[1]).int(),
        block_table=led(pages, counts).int(),
        num_splits=1,
        return_softmax_lse=True,
    )
    past_lse = past_lse.masked_fill(counts[:, None, None] == 0, -torch.inf)
    weight = torch.sigmoid(past_lse - own_lse).transpose(1, 2)[..., None]
    return torch.lerp(own.float(), past.float(), weight).to(q.dtype)


def led(pages: Tensor, counts: Tensor) -> Tensor:
    """A page table filled up in front [N, T], with its real pages first."""
    t = pages.shape[1]
    order = torch.arange(t, device=pages.device) + t - counts[:, None]
    return pages.gather(1, order.clamp(max=t - 1).long())
