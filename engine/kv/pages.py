"""How the pages of one layer are stored: as they are, or as 8-bit codes with scales. Chosen once, when a pool is made.

Both answer to the same four calls: `range` (a run of pages), `gather` (any pages), `write`, and `raw`, the stored
tensors themselves, for what moves or saves pages without reading them. Knows tensors only.

Legend: P pages, S tokens of a latent frame, h heads, d head width, N T any shape of an index.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

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

    def grow(self, num_pages: int) -> None: ...


def grown(x: Tensor, num_pages: int) -> Tensor:
    """A copy with zeros added at the end, to make `num_pages` pages."""
    made = torch.zeros(num_pages, *x.shape[1:], dtype=x.dtype, device=x.device, pin_memory=x.is_pinned())
    made[: len(x)] = x
    return made


class PlainPages:
    """Pages in the model's own precision; a run of them is a view, nothing is copied."""

    sliceable = True

    def __init__(self, stream: KVStream, num_pages: int, dtype: torch.dtype, device: torch.device, pin: bool = False):
        shape = (num_pages, stream.tokens, stream.heads, stream.width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device, pin_memory=pin)
        self.values = torch.zeros(shape, dtype=dtype, device=device, pin_memory=pin)

    def range(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [count, S, h, d] of a run of pages, as views."""
        return self.keys[first : first + count], self.values[first : first + count]

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Copies [*index, S, h, d] of any pages, in any order."""
        return self.keys[index], self.values[index]

    def write(self, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [*index, S, h, d]."""
        self.keys[index], self.values[index] = keys, values

    def raw(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values}

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
    ):
        shape = (num_pages, stream.tokens, stream.heads, stream.width)
        scale = (num_pages, 1, stream.heads, stream.width if per_channel else 1)
        self.dtype, self.code = dtype, code
        self.axes = (-3,) if per_channel else (-3, -1)
        self.keys = torch.zeros(shape, dtype=code, device=device, pin_memory=pin)
        self.values = torch.zeros(shape, dtype=code, device=device, pin_memory=pin)
        self.key_scales = torch.zeros(scale, dtype=torch.float16, device=device, pin_memory=pin)
        self.value_scales = torch.zeros((*scale[:3], 1), dtype=torch.float16, device=device, pin_memory=pin)

    def range(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [count, S, h, d] of a run of pages, decoded."""
        return self._decoded(slice(first, first + count))

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [*index, S, h, d] of any pages, decoded."""
        return self._decoded(index)

    def write(self, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [*index, S, h, d], encoded."""
        for x, codes, scales, axes in (
            (keys, self.keys, self.key_scales, self.axes),
            (values, self.values, self.value_scales, (-3, -1)),
        ):
            scale = scale_of(x, axes, LIMITS[self.code])
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

    def _decoded(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        keys = self.keys[index].to(self.dtype) * self.key_scales[index].to(self.dtype)
        values = self.values[index].to(self.dtype) * self.value_scales[index].to(self.dtype)
        return keys, values


def scale_of(x: Tensor, axes: tuple[int, ...], limit: float) -> Tensor:
    """The float16 scale by which the largest magnitude over `axes` becomes `limit` at most."""
    largest = x.float().abs().amax(axes, keepdim=True)
    return (largest / limit * (1 + 2**-10)).clamp(2**-24, 65504).half()


def encode(x: Tensor, scale: Tensor, code: torch.dtype) -> Tensor:
    """Codes of x / scale, within their limits, rounded to the nearest."""
    limit = LIMITS[code]
    scaled = (x.float() / scale.float()).clamp(-limit, limit)
    return scaled.round().to(code) if code == torch.int8 else scaled.to(code)
