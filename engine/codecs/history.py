"""History: what the causal layers of some worlds have seen of the past, read and written in the order they run.

A streaming state is a list of tensors, one for each layer that looks back: its last input frames [C, k, H, W]. The
states that come in are only read; the new ones are tensors of their own, so forks share them and a closed world's
memory is given back. Knows no layer, and nothing of worlds but their order.

Shapes: N worlds, C channels, T frames, H W the frames' size, k frames looked back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# One world's streaming state; None before its first frame.
State = list[Tensor] | None

# Convolutions over frames read channels last, which is what a GPU's tensor cores take without a transpose.
LAYOUT = torch.channels_last_3d


def copy(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


class History:
    """The states of N worlds during one run of a model, all of them fresh or none.

    Attributes:
        fresh: no world has seen a frame yet.
        left: the states after this run, one a world, filled as the layers run.
    """

    def __init__(self, states: Sequence[State]):
        self.states, self.left = states, [list[Tensor]() for _ in states]
        self.fresh = states[0] is None
        assert all((state is None) == self.fresh for state in states), "worlds of one run are all fresh or none is"

    def lead(self, x: Tensor, frames: int, write: Callable[[Tensor, Tensor], object] = copy) -> Tensor:
        """[N, C, T, H, W] -> [N, C, frames + T, H, W]: the layer's past in front, zeros where there is none.

        Args:
            write: `(x, out)` writes the T frames that follow; by default, those of `x`.
        """
        led = empty_like(x, frames=frames + x.shape[2])
        self.recall(led[:, :, :frames])
        write(x, led[:, :, frames:])
        self.keep(led, frames)
        return led

    def recall(self, out: Tensor) -> None:
        """Write the layer's past to [N, C, k, H, W]."""
        for row, state, left in zip(out, self.states, self.left, strict=True):
            if state is None:
                row.zero_()
            else:
                row.copy_(state[len(left)])

    def keep(self, x: Tensor, frames: int) -> None:
        """Leave the last `frames` of [N, C, T, H, W] as the layer's past."""
        for row, left in zip(x, self.left, strict=True):
            left.append(row[:, -frames:].clone())


def empty_like(x: Tensor, frames: int, times: int = 1) -> Tensor:
    """Space for [N, times * C, frames, H, W], channels last in memory."""
    n, c, _, h, w = x.shape
    return torch.empty((n, times * c, frames, h, w), dtype=x.dtype, device=x.device, memory_format=LAYOUT)


def streamed(
    run: Callable[[Tensor, History], Tensor], pieces: Sequence[Tensor], states: list[State]
) -> tuple[Tensor, list[State]]:
    """Run a model over one piece after another, [N, T, ...] each; outputs joined in time, and the states left."""
    made = []
    for piece in pieces:
        history = History(states)
        made.append(run(piece, history))
        states = list(history.left)
    return torch.cat(made, dim=1), states


def by_age(
    run: Callable[[Tensor, list[State]], tuple[Tensor, list[State]]], x: Tensor, states: Sequence[State] | None
) -> tuple[Tensor | list[Tensor], list[State]]:
    """Run fresh worlds in one batch and the others in another.

    Args:
        run: `(x [n, ...], n states all None or none) -> outputs [n, ...], n states`.
        x: [N, ...].
        states: one a world; None for N fresh ones.

    Returns:
        Outputs in the order of the worlds, [N, ...] or, where fresh worlds' outputs have another shape, a list of N.
    """
    states = [None] * len(x) if states is None else list(states)
    if len(states) != len(x):
        raise ValueError(f"{len(states)} streaming states for {len(x)} worlds: give one a world, None for a new one")
    fresh = [i for i, state in enumerate(states) if state is None]
    older = [i for i, state in enumerate(states) if state is not None]
    if not fresh or not older:
        return run(x, states)
    rows, left = dict[int, Tensor](), dict[int, State]()
    for group in (fresh, older):
        made, kept = run(torch.stack([x[i] for i in group]), [states[i] for i in group])
        rows |= dict(zip(group, made, strict=True))
        left |= dict(zip(group, kept, strict=True))
    outputs = [rows[i] for i in range(len(x))]
    alike = len({row.shape for row in outputs}) == 1
    return torch.stack(outputs) if alike else outputs, [left[i] for i in range(len(x))]


def check_states(states: Sequence[State], size: Sequence[int]) -> None:
    """Raises ValueError unless all states that are there are of this height and width."""
    for state in states:
        if state is not None and state[0].shape[-2:] != tuple(size):
            raise ValueError(
                f"a streaming state of {tuple(state[0].shape[-2:])} for a size of {tuple(size)}: a world's size cannot "
                "change. Open a new one"
            )
