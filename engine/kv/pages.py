"""How the pages of one layer are stored: as they are, or as 8-bit codes with scales. Chosen once, when a pool is made.

Both answer to the same four calls: `range` (a run of pages), `gather` (any pages), `write`, and `raw`, the stored
tensors themselves, for what moves or saves pages without reading them. In memory a head's pages lie together, so that
the products of attention read a run of them as one matrix. Knows tensors only.

Legend: P pages, S tokens of a latent frame, h heads, d head width, N T any shape of an index.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from engine.kv.share import WHOLE, Share
from engine.spec import KVStream

# The largest magnitude of a code.
LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


class Pages(Protocol):
    """Keys and values of P pages of one layer."""

    sliceable: bool

    def range(self, first: int, count: int) -> tuple[Tensor, Tensor]: ...

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]: ...

    def write(self, index: Tensor, keys: Tensor, values: Tensor) -> None: ...

    def raw(self) -> dict[str, Tensor]: ...

    def decoded(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]: ...

    def grow(self, num_pages: int) -> None: ...


def blank(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pin: bool) -> Tensor:
    """Zeros [P, S, h, d], stored head by head."""
    p, s, h, d = shape
    return torch.zeros(h, p, s, d, dtype=dtype, device=device, pin_memory=pin).permute(1, 2, 0, 3)


def grown(x: Tensor, num_pages: int) -> Tensor:
    """A copy with zeros added at the end, to make `num_pages` pages."""
    made = blank((num_pages, *x.shape[1:]), x.dtype, x.device, x.is_pinned())
    made[: len(x)] = x
    return made


def taken(x: Tensor, index: Tensor) -> Tensor:
    """[*index, S, h, d] of any pages, head by head in memory too. (On a CPU ten times faster than `x[:, index]`.)"""
    made = x.permute(2, 0, 1, 3).index_select(1, index.flatten()).unflatten(1, index.shape)
    return made.permute(*range(1, made.ndim - 1), 0, made.ndim - 1)


class PlainPages:
    """Pages in the model's own precision; a run of them is a view, nothing is copied."""

    sliceable = True

    def __init__(self, stream: KVStream, num_pages: int, dtype: torch.dtype, device: torch.device, pin: bool = False):
        shape = (num_pages, stream.tokens, stream.heads, stream.width)
        self.keys, self.values = blank(shape, dtype, device, pin), blank(shape, dtype, device, pin)

    def range(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [count, S, h, d] of a run of pages, as views."""
        return self.keys[first : first + count], self.values[first : first + count]

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Copies [*index, S, h, d] of any pages, in any order."""
        return taken(self.keys, index), taken(self.values, index)

    def write(self, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [*index, S, h, d]."""
        self.keys[index], self.values[index] = keys, values

    def raw(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values}

    def decoded(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values of what `raw` holds of some pages."""
        return stored["keys"], stored["values"]

    def grow(self, num_pages: int) -> None:
        self.keys, self.values = grown(self.keys, num_pages), grown(self.values, num_pages)


class QuantisedPages:
    """Pages as int8 or fp8 codes, each times a scale: codes of a page and head share one, or of a channel of keys.

    Keys have a few channels far larger than the others, the same ones in every token (KIVI, Liu et al. 2024): with
    `per_channel` each channel of a page's keys has a scale of its own. Scales are float16, which suits magnitudes from
    1e-2 to 1e6. Reading gives the model's precision back.
    """

    sliceable = False

    def __init__(
        self,
        stream: KVStream,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        pin: bool = False,
        code: torch.dtype = torch.int8,
        per_channel: bool = True,
        share: Share = WHOLE,
    ):
        self.largest = partial(share.largest, stream.name)
        shape = (num_pages, stream.tokens, stream.heads, stream.width)
        scale = (num_pages, 1, stream.heads, stream.width if per_channel else 1)
        self.dtype, self.code = dtype, code
        self.axes = (-3,) if per_channel else (-3, -1)
        self.keys, self.values = blank(shape, code, device, pin), blank(shape, code, device, pin)
        self.key_scales = blank(scale, torch.float16, device, pin)
        self.value_scales = blank((*scale[:3], 1), torch.float16, device, pin)

    def range(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [count, S, h, d] of a run of pages, decoded."""
        return self.decoded({name: x[first : first + count] for name, x in self.raw().items()})

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [*index, S, h, d] of any pages, decoded."""
        return self.decoded({name: taken(x, index) for name, x in self.raw().items()})

    def write(self, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [*index, S, h, d], encoded."""
        found = self.largest((magnitude(keys, self.axes), magnitude(values, (-3, -1))))
        stores = ((keys, self.keys, self.key_scales), (values, self.values, self.value_scales))
        for (x, codes, scales), largest in zip(stores, found, strict=True):
            scale = scale_of(largest, LIMITS[self.code])
            codes[index], scales[index] = encode(x, scale, self.code), scale

    def raw(self) -> dict[str, Tensor]:
        return {
            "keys": self.keys,
            "values": self.values,
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
        }

    def grow(self, num_pages: int) -> None:
        for name, x in self.raw().items():
            setattr(self, name, grown(x, num_pages))

    def decoded(self, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values of what `raw` holds of some pages."""
        pairs = (stored["keys"], stored["key_scales"]), (stored["values"], stored["value_scales"])
        made = [codes.to(self.dtype) * scales.to(self.dtype) for codes, scales in pairs]
        return made[0], made[1]


def magnitude(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The largest magnitude over some axes, which stay, float32."""
    return x.float().abs().amax(axes, keepdim=True)


def scale_of(largest: Tensor, limit: float) -> Tensor:
    """The float16 scale by which a largest magnitude becomes `limit` at most."""
    return (largest / limit * (1 + 2**-10)).clamp(2**-24, 65504).half()


def encode(x: Tensor, scale: Tensor, code: torch.dtype) -> Tensor:
    """Codes of x / scale, within their limits, rounded to the nearest."""
    limit = LIMITS[code]
    scaled = (x.float() / scale.float()).clamp(-limit, limit)
    return scaled.round().to(code) if code == torch.int8 else scaled.to(code)
