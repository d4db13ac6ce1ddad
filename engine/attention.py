"""attend(q, k, v, view): the block's queries over what its view lets them see.

The view joins the block's own keys and values to its history and groups queries that see the same keys; the kernel
is PyTorch's scaled_dot_product_attention, with a plain reference beside it. Legend: N worlds, S tokens in flight,
T visible keys, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kv.view import Group, PagedGroup, Turn

Kernel = Callable[[Tensor, Group], Tensor]


class LayerView(Protocol):
    """One layer's window on the history."""

    def extend(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn | None = None) -> Sequence[Group | PagedGroup]:
        """Join the block's keys and values [N, S, h, d] to the history that its queries may see.

        Args:
            q: queries, already turned; their number may differ from S.
            turn: turns keys by their rotary positions; None where the model did so itself.

        Returns:
            groups that cover the queries in order.
        """
        ...


def attend(q: Tensor, k: Tensor, v: Tensor, view: LayerView, turn: Turn | None = None) -> Tensor:
    """Attention output, in the shape of the queries.

    Args:
        q: queries [N, S, h, d], already turned by their rotary positions, if they have any.
        k, v: the block's keys and values, [N, S', h, d].
        turn: turns keys by their rotary positions. The view decides when: before they are kept, or when they are
            read, where a model wants positions counted from the window's start. None: the model turned them.
    """
    kernel = choose_kernel(q)
    parts = [
        g.run(q[:, g.queries]) if isinstance(g, PagedGroup) else kernel(q[:, g.queries], g)
        for g in view.extend(q, k, v, turn)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def choose_kernel(q: Tensor) -> Kernel:
    """Two products on a CPU where they are faster: under gradients, and in bf16 (0.42 ms a layer against 0.52)."""
    dense = q.device.type == "cpu" and (q.requires_grad or q.dtype == torch.bfloat16)
    return attend_dense if dense else attend_fused


def attend_fused(q: Tensor, group: Group) -> Tensor:
    """PyTorch's fused kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, group.keys, group.values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask).transpose(1, 2)


def attend_dense(q: Tensor, group: Group) -> Tensor:
    """Two batched products and a softmax in the products' precision: on a CPU its backward is 2.4 times faster."""
    n, _, h, d = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q * d**-0.5, group.keys, group.values))
    scores = q @ k.transpose(1, 2)
    if group.mask is not None:
        scores = scores.unflatten(0, (n, h)).masked_fill(~group.mask, -torch.inf).flatten(0, 1)
    with torch.autocast(q.device.type, enabled=False):
        weights = scores.softmax(-1)
    return (weights @ v).unflatten(0, (n, h)).transpose(1, 2)


def attend_partial(q: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, and what merging it with the others needs.

    Returns:
        output [N, S, h, d] as if there were no other keys, and float32 log-sum-exps of its scores [N, h, S].
    """
    flash = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256 and group.mask is None
    if not flash and q.device.type != "cpu":
        return attend_partial_reference(q, group)
    q, k, v = (x.transpose(1, 2) for x in (q, group.keys, group.values))
    if flash:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        bias = None if group.mask is None else q.new_zeros(group.mask.shape).masked_fill(~group.mask, -torch.inf)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    return out.transpose(1, 2), lse


def attend_partial_reference(q: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """The same as `attend_partial`, written out in float32."""
    scores = torch.einsum("bshd,bthd->bhst", q.float(), group.keys.float()) / q.shape[-1] ** 0.5
    if group.mask is not None:
        scores = scores.masked_fill(~group.mask, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    return torch.einsum("bhst,bthd->bshd", weights, group.values.float()).to(q.dtype), lse


def attend_reference(q: Tensor, k: Tensor, v: Tensor, view: LayerView) -> Tensor:
    """The same as `attend`, written out query by query: softmax(q k^T / sqrt(d)) v."""
    parts = []
    for group in view.extend(q, k, v):
        assert isinstance(group, Group), "the reference reads gathered keys"
        scores = torch.einsum("bshd,bthd->bhst", q[:, group.queries], group.keys) / q.shape[-1] ** 0.5
        if group.mask is not None:
            scores = scores.masked_fill(~group.mask, -torch.inf)
        parts.append(torch.einsum("bhst,bthd->bshd", scores.softmax(-1), group.values))
    return torch.cat(parts, dim=1)
