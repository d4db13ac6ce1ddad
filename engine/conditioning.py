"""Condition and Context: everything that steers a block, as immutable values. Imports nothing of ours but spec.

A context lasts until another takes its place: a prompt, an image. What layers make of it is computed once and shared
by every world that has it. A condition is of one step.

Legend: N worlds, F latent frames, A action encoding, V variables, T tokens, h heads, d head width, c h w channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Context:
    """A prompt or an image, as the layers of a denoiser read it. Immutable: worlds share it.

    Attributes:
        layers: keys and values of every layer's cross-attention, each [T, h, d]; stacked, [N, T, h, d]. A layer
            that reads text and image apart has four: keys, values, the image's keys, the image's values.
        beside: channels [K, c, h, w] that a denoiser is shown beside latent frames 0 .. K-1, the last of them from
            then on; None where it is shown none.
        source: what they were made of, named tensors: enough to make them again.
        ending: of models that are told how much of the video is to come: the same for the last blocks, those with
            1, 2, ... blocks to come first.
    """

    layers: tuple[tuple[Tensor, ...], ...]
    beside: Tensor | None = None
    source: dict[str, Tensor] = field(default_factory=dict)
    ending: tuple[Context, ...] = ()

    def before_end(self, blocks: int | None) -> Context:
        """What a block reads with which so many are left, itself among them; None where there is no end."""
        if blocks is None or not self.ending or blocks > len(self.ending):
            return self
        return self.ending[max(blocks, 1) - 1]

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys, values and channels."""
        rest = [] if self.beside is None else [self.beside]
        return sum(x.nbytes for x in [*chain(*self.layers), *rest])

    def same(self, other: Context | None) -> bool:
        """Whether another was made of the same: worlds that have the one have the other already."""
        if self is other or other is None or not self.source or self.source.keys() != other.source.keys():
            return self is other
        return all(torch.equal(x, other.source[name]) for name, x in self.source.items())

    @staticmethod
    def stack(contexts: Sequence[Context]) -> tuple[tuple[Tensor, ...], ...]:
        """The layers of N worlds' contexts, with a leading N axis; nothing is copied where all share one."""
        first = contexts[0]
        if all(c is first for c in contexts):
            return tuple(tuple(x.expand(len(contexts), *x.shape) for x in layer) for layer in first.layers)
        pairs = zip(*(c.layers for c in contexts), strict=True)
        return tuple(tuple(torch.stack(x) for x in zip(*layer, strict=True)) for layer in pairs)


@dataclass(frozen=True)
class Condition:
    """What steers F latent frames of one world; stacked, of N worlds, with a leading N axis.

    Attributes:
        actions: encoded actions float32 [F, A] (see spec); zeros stand for no action. Models that are shown a window
            of pixel frames' actions get [F, W, A].
        variables: the named variables as they stood before each frame, scaled to [-1, 1], float32 [F, V]. They are
            the world's own: the engine fills them in.
        prompt: of a single world, a context that takes effect with this step and lasts; None keeps what it has.
        context: layers of the context (see `Context`), stacked; the engine fills them in.
        beside: channels beside the latents, [F, c, h, w]; the engine fills them in.
        chunks: of models with several blocks in flight, in place of `context`: what each of them reads, oldest first, a
            row for each world; None for no prompt.
        dropped: bool [N, B]: of these, which are told that their prompt was dropped.
        step_size: of the pass, told to models that were distilled for several.
        levels: of the pass and each block in flight, on the host, where guidance goes by them.
    """

    actions: Tensor
    variables: Tensor
    context: tuple[tuple[Tensor, ...], ...] = ()
    beside: Tensor | None = None
    prompt: Context | None = None
    chunks: tuple[tuple[Context | None, ...], ...] = ()
    dropped: Tensor | None = None
    step_size: float | None = None
    levels: tuple[float, ...] = ()

    @classmethod
    def of(cls, actions: np.ndarray, prompt: Context | None = None) -> Condition:
        """The condition of a step, from encoded actions float32 [F, A], one for each frame of the block."""
        rows = torch.from_numpy(np.ascontiguousarray(actions, np.float32))
        return cls(rows, rows.new_zeros(*rows.shape[:-1], 0), prompt=prompt)

    def to(self, device: torch.device) -> Condition:
        """The same with its actions and variables there (contexts live where the model does)."""
        return replace(self, actions=self.actions.to(device), variables=self.variables.to(device))
