"""The Triton kernel of paged attention. Imported only where Triton is installed; knows pointers and strides.

One program a world, head and tile of queries. It walks the world's own pages and then the block's own keys, tile by
tile, with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022): the sum over earlier tiles is scaled down
whenever a larger score is met. Tiles end with their page, and their sizes follow from the shapes of one world alone, so
the worlds beside it change no bit. 8-bit codes become numbers in registers.

Legend: N worlds, T pages of a table, P pages of the pool, S tokens of a page, h heads, d head width; M queries and K
keys of a tile, D columns of it (d padded to a power of two).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
PRODUCTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def tile(matrix, row_stride, column_stride, first, count, ROWS: tl.constexpr, D: tl.constexpr, d: tl.constexpr):
    """Rows `first` on of a matrix [count, d], as [ROWS, D] with zeros beyond its edges."""
    rows, columns = first + tl.arange(0, ROWS), tl.arange(0, D)
    inside = (rows < count)[:, None] & (columns < d)[None, :]
    return tl.load(matrix + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)


@triton.jit
def decoded(codes, scales, column_stride, D: tl.constexpr, d: tl.constexpr):
    """Codes [K, D] times the scales of their page and head, one a column."""
    columns = tl.arange(0, D)
    return codes.to(tl.float32) * tl.load(scales + columns * column_stride, mask=columns < d, other=0.0).to(tl.float32)


@triton.jit
def fold(queries, keys, values, first, count, top, total, out, scale, K: tl.constexpr):
    """Take one more tile of keys and values [K, D] into the running softmax. It starts at key `first` of `count`.

    `top` [M] is the largest score so far (in base 2), `total` [M] the sum of weights, `out` [M, D] that of values.
    """
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where((first + tl.arange(0, K) < count)[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    fade, weights = tl.exp2(top - higher), tl.exp2(scores - higher[:, None])
    out = tl.dot(weights.to(values.dtype), values, out * fade[:, None], input_precision="ieee")
    return higher, total * fade + tl.sum(weights, 1), out


@triton.jit
def attend_pages(
    out,
    q,
    own_keys,
    own_values,
    keys,
    values,
    key_scales,
    value_scales,
    pages,
    counts,
    out_strides,
    q_strides,
    own_key_strides,
    own_value_strides,
    key_strides,
    value_strides,
    key_scale_strides,
    value_scale_strides,
    page_strides,
    num_queries,
    num_own,
    num_pages,
    scale,
    S: tl.constexpr,
    d: tl.constexpr,
    CODES: tl.constexpr,
    PRODUCT: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
):
    """`out` [N, num_queries, h, d] of one tile of queries, one head, one world; strides are those of the tensors."""
    first_query = tl.program_id(0) * M
    head, world = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q += world * q_strides[0] + head * q_strides[2]
    queries = tile(q, q_strides[1], q_strides[3], first_query, num_queries, M, D, d).to(PRODUCT)
    top, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    sums = tl.zeros([M, D], tl.float32)

    tiles: tl.constexpr = (S + K - 1) // K
    count = tl.load(counts + world).to(tl.int32)
    table = pages + world * page_strides[0] + (num_pages - count) * page_strides[1]
    for i in range(0, count * tiles):
        page, first = tl.load(table + i // tiles * page_strides[1]).to(tl.int64), i % tiles * K
        k = keys + page * key_strides[0] + head * key_strides[2]
        v = values + page * value_strides[0] + head * value_strides[2]
        tile_keys = tile(k, key_strides[1], key_strides[3], first, S, K, D, d)
        tile_values = tile(v, value_strides[1], value_strides[3], first, S, K, D, d)
        if CODES:
            k_scales = key_scales + page * key_scale_strides[0] + head * key_scale_strides[2]
            v_scales = value_scales + page * value_scale_strides[0] + head * value_scale_strides[2]
            tile_keys = decoded(tile_keys, k_scales, key_scale_strides[3], D, d)
            tile_values = decoded(tile_values, v_scales, value_scale_strides[3], D, d)
        top, total, sums = fold(
            queries, tile_keys.to(PRODUCT), tile_values.to(PRODUCT), first, S, top, total, sums, scale, K
        )

    k = own_keys + world * own_key_strides[0] + head * own_key_strides[2]
    v = own_values + world * own_value_strides[0] + head * own_value_strides[2]
    for first in range(0, num_own, K):
        tile_keys = tile(k, own_key_strides[1], own_key_strides[3], first, num_own, K, D, d).to(PRODUCT)
        tile_values = tile(v, own_value_strides[1], own_value_strides[3], first, num_own, K, D, d).to(PRODUCT)
        top, total, sums = fold(queries, tile_keys, tile_values, first, num_own, top, total, sums, scale, K)

    rows, columns = first_query + tl.arange(0, M), tl.arange(0, D)
    out += world * out_strides[0] + head * out_strides[2]
    out += rows[:, None] * out_strides[1] + columns[None, :] * out_strides[3]
    inside = (rows < num_queries)[:, None] & (columns < d)[None, :]
    tl.store(out, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)


def tiles_of(num_queries: int, tokens: int, width: int, itemsize: int) -> dict[str, int]:
    """Tile sizes and launch options, by the shapes of one world; never by how many worlds there are.

    A tile of keys and one of values, twice (one is read while the other is used), stay below 64 KiB of shared memory.
    """
    columns = max(16, triton.next_power_of_2(width))
    wide = columns * itemsize > 256
    most_queries, most_keys = (64, 32) if wide else (128, 64)
    queries = min(most_queries, max(16, triton.next_power_of_2(num_queries)))
    keys = min(most_keys, max(16, triton.next_power_of_2(tokens)))
    return {"M": queries, "K": keys, "D": columns, "num_warps": 8 if queries == 128 else 4, "num_stages": 2}


def launch(
    out: Tensor,
    q: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Tensor,
    counts: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> tuple[tuple[int, int, int], list[Any], dict[str, Any]]:
    """The grid, arguments and options of `attend_pages`. Without codes, keys stand in for scales, and are not read."""
    (n, num_queries, h, d), s = q.shape, keys.shape[1]
    scales = [keys if x is None else x.expand(-1, -1, -1, d) for x in (key_scales, value_scales)]
    tensors = [out, q, own_keys, own_values, keys, values, *scales, pages]
    strides = [x.stride() for x in tensors]
    tiles = tiles_of(num_queries, s, d, q.dtype.itemsize)
    # The interpreter keeps bf16 as bits, and would multiply those: its products are made in fp32.
    product = tl.float32 if triton.knobs.runtime.interpret else PRODUCTS[q.dtype]
    options = {"S": s, "d": d, "CODES": key_scales is not None, "PRODUCT": product, **tiles}
    numbers = [num_queries, own_keys.shape[1], pages.shape[1], d**-0.5 * LOG2_E]
    return (triton.cdiv(num_queries, tiles["M"]), h, n), [*tensors, counts, *strides, *numbers], options


def attend_triton(
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
    """Paged attention in one launch; see `engine.paged_attention.paged_attend` for the arguments."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    read = (own_keys, own_values, keys, values, pages, counts, key_scales, value_scales)
    grid, arguments, options = launch(out, q, *read)
    attend_pages[grid](*arguments, **options)
    return out
