"""Parts: what one rank has of all that a layer's queries see, as it goes to others: pages as they are stored, and the
block's own keys and values.

Only pages that are seen go, without the padding that worlds of other ages have; who gets a part puts that back.

Legend: N worlds, T latent frames of history, F of the block, P pages, s tokens of a frame that a rank has, h heads, d
head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.kv.pool import upload


@dataclass(frozen=True)
class Part:
    """A rank's part of a layer.

    Attributes:
        stored: of pages, [P, s, h, d], and of their scales, [P, 1, h, d or 1]; empty where there are none, or where
            they lie in front of the block's keys and values.
        keys, values: the block's, [N, F s, h, d].
        tokens: s.
    """

    stored: dict[str, Tensor]
    keys: Tensor
    values: Tensor
    tokens: int

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """By name, those of wide numbers first: so that bytes behind one another stay aligned."""
        made = [("", self.keys), ("", self.values), *self.stored.items()]
        return sorted(made, key=lambda pair: -pair[1].element_size())

    def shapes(self, tokens: int) -> list[tuple[int, ...]]:
        """Shapes of the same tensors of a rank that has so many tokens of a frame."""
        rows = [1 if name.endswith("scales") else x.shape[1] // self.tokens * tokens for name, x in self.tensors]
        return [(len(x), n, *x.shape[2:]) for n, (_, x) in zip(rows, self.tensors, strict=True)]

    def num_bytes(self, tokens: int) -> int:
        """Bytes of such a rank's part."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes(tokens)]
        return sum(n * x.element_size() for n, (_, x) in zip(sizes, self.tensors, strict=True))

    def packed(self) -> Tensor:
        """All of it in one run of bytes."""
        return torch.cat([x.contiguous().reshape(-1).view(torch.uint8) for _, x in self.tensors])

    def unpacked(self, raw: Tensor, tokens: int) -> Part:
        """The part of a rank that has so many tokens, out of its bytes."""
        made, at = [], 0
        for shape, (_, x) in zip(self.shapes(tokens), self.tensors, strict=True):
            stop = at + torch.Size(shape).numel() * x.element_size()
            made.append(raw[at:stop].view(x.dtype).view(shape))
            at = stop
        named = list(zip([name for name, _ in self.tensors], made, strict=True))
        keys, values = (x for name, x in named if not name)
        return replace(self, stored={n: x for n, x in named if n}, keys=keys, values=values, tokens=tokens)


class Seen:
    """Which pages the layers of a view see: a row a world, of which the last `counts` are real.

    Args:
        longest: T.
    """

    def __init__(self, counts: list[int], longest: int, device: torch.device):
        self.counts, self.longest, self.device = counts, longest, device
        self.full = min(counts) == longest
        places = [n * longest + t for n, c in enumerate(counts) for t in range(longest - c, longest)]
        self.places = upload(places, device)
        self.masks: dict[tuple[int, int], Tensor | None] = {}

    def real(self, pages: Tensor) -> Tensor:
        """Those of pages [N, T] that are seen, [P]."""
        return pages.flatten() if self.full else pages.flatten()[self.places]

    def spread(self, x: Tensor) -> Tensor:
        """Pages [P, s, h, d] -> histories [N, T s, h, d], padded in front."""
        if not self.full:
            made = x.new_zeros(len(self.counts) * self.longest, *x.shape[1:])
            made[self.places] = x
            x = made
        return x.unflatten(0, (len(self.counts), self.longest)).flatten(1, 2)

    def mask(self, tokens: int, frames: int) -> Tensor | None:
        """bool [N, 1, 1, (T + F) s], False on padding; None where there is none."""
        if self.full:
            return None
        name = (tokens, frames)
        if name not in self.masks:
            rows = [[False] * (self.longest - c) + [True] * (c + frames) for c in self.counts]
            seen = torch.tensor(rows, device=self.device)
            self.masks[name] = seen.repeat_interleave(tokens, dim=1)[:, None, None]
        return self.masks[name]
