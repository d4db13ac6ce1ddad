"""What a pass and a decode cost, counted on the meta device: shapes are computed, numbers are not, at any size.

The denoiser and the codec are the engine's own; the history is a view of the right shapes. Operations are counted by
torch.utils.flop_counter, bytes by following every tensor from when it is made until it is dropped.

Legend: N worlds, F latent frames in flight, S tokens of a frame, T history, h heads, d head width.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import unfilled_codec
from engine.conditioning import Condition, Context
from engine.kv.view import Group, Turn
from engine.models.wan import WanDiT
from engine.published import WanSpec, WanVaeSpec
from engine.scenes import SETTLED
from engine.spec import WorldSpec

META = torch.device("meta")


@dataclass(frozen=True)
class Count:
    """What one call costs.

    Attributes:
        flops: operations, two a multiply-add.
        attention: those of them that are products of queries, keys and values.
        activations: the most bytes alive at once that the call itself made; scores of attention are never stored.
    """

    flops: int
    attention: int
    activations: int


class Sized:
    """A view whose layers see `visible` latent frames: keys and values of the right shape, none of them stored."""

    def __init__(self, spec: WorldSpec, visible: int):
        self.tokens = {s.name: s.tokens * visible for s in spec.streams}

    def layer(self, index: int, stream: str = "self") -> SizedLayer:
        return SizedLayer(self.tokens[stream])


class SizedLayer:
    """One layer of a `Sized` view."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> list[Group]:
        """See engine.attention."""
        k = turn(k) if turn else k
        keys, values = (x[:, :1].expand(-1, self.tokens, -1, -1) for x in (k, v))
        return [Group(slice(None), keys, values)]


class Alive(TorchDispatchMode):
    """Follows the bytes of what is made while it is on, until it is dropped; a view is no bytes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in old:
                self._note(x.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name not in self.sizes:
            self.sizes[name] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, name)

    def _drop(self, name: int) -> None:
        self.now -= self.sizes.pop(name, 0)


class Fused(TorchFunctionMode):
    """Attention as a fused kernel has it: an output, and no scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def count(call: Callable[[], Any]) -> Count:
    """Run a call twice: once for its operations, once for its bytes."""
    with FlopCounterMode(display=False) as counter:
        call()
    by_name = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    with Alive() as alive, Fused():
        call()
    return Count(counter.get_total_flops(), by_name.get("aten.bmm", 0), alive.peak)


def unfilled_denoiser(sizes: WanSpec, dtype: torch.dtype) -> WanDiT:
    """The denoiser on the meta device."""
    with META:
        return WanDiT(sizes).to(dtype).requires_grad_(False)


@torch.no_grad()
def context_of(denoiser: WanDiT, spec: WorldSpec) -> Context:
    """What the layers read of a prompt or a picture, on the meta device; a game's, with what stands beside latents."""
    sizes = denoiser.spec
    text = torch.empty(sizes.text_tokens, sizes.text_width, device=META) if sizes.text_tokens else None
    image = torch.empty(sizes.image_tokens, sizes.image_width, device=META) if sizes.image_tokens else None
    more = sizes.in_channels - sizes.out_channels
    beside = torch.empty(SETTLED, more, *spec.latent[1:], device=META) if more else None
    return denoiser.contextualise(text, image, beside)


def count_pass(denoiser: WanDiT, spec: WorldSpec, context: Context, worlds: int, history: int) -> Count:
    """One pass over a block of N worlds that see `history` latent frames besides it."""
    sizes, n, frames = denoiser.spec, worlds, spec.block
    latents = torch.empty(n, frames, *spec.latent, device=META)
    beside = None if context.beside is None else context.beside[:1].expand(n, frames, -1, -1, -1)
    shown = (sizes.actions.frames, sizes.actions.keyboard + sizes.actions.mouse) if sizes.actions else (0,)
    actions = torch.empty(n, frames, *shown, device=META)
    condition = Condition(actions, actions, Context.stack([context] * n), beside)
    times = torch.empty(n, frames, device=META)
    positions = torch.empty(n, frames, dtype=torch.int64, device=META)
    view = Sized(spec, frames + history)
    return count(lambda: denoiser(latents, times, positions, condition, view))


@torch.no_grad()
def count_decode(spec: WorldSpec, dtype: torch.dtype, worlds: int) -> tuple[Count, int]:
    """Decoding a block of N worlds that are not fresh, and the bytes of one world's streaming state."""
    assert isinstance(spec.codec, WanVaeSpec)
    codec = unfilled_codec(spec.codec).to(dtype).requires_grad_(False)
    latents = torch.empty(worlds, spec.block, *spec.latent, device=META)
    _, states = codec.decode(latents)
    made = count(lambda: codec.decode(latents, states))
    state = states[0]
    assert state is not None
    return made, sum(x.nbytes for x in state)
