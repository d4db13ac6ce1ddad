"""Tensors -> a module: every one used once, all shapes compared before a number is read, one tensor in flight.

Does not know what the module is, nor where the tensors come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor
from tqdm import tqdm

from engine.checkpoints.tensors import Shape, Tensors
from engine.loading import compare
from engine.swap import M

LARGE = 1_000_000_000  # bytes from which on a bar is shown


def fill(
    module: M,
    tensors: Tensors,
    dtype: torch.dtype | None,
    device: torch.device | str,
    ignored: Mapping[str, Shape] | None = None,
    progress: bool = True,
) -> M:
    """Fill a module built on the meta device, and return it. At most the module and one stored tensor are in memory.

    Args:
        dtype: of its floating-point tensors; None leaves each as it is stored.
        device: where the module is to be.
        ignored: name -> shape of tensors that must be there and are not used.
        progress: show a bar if more than 1 GB is read.

    Raises:
        ValueError: names or shapes differ, all of them listed. The module is then as it was.
    """
    ignored = ignored or {}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _check_meta(module, expected)
    problems = compare({**expected, **ignored}, tensors.shapes)
    if problems:
        raise ValueError(f"{tensors.source} does not fit the model:\n  " + "\n  ".join(problems))
    read: dict[str, Tensor] = {}
    with _bar(tensors, progress) as bar:
        for name in (name for name in tensors if name not in ignored):
            read[name] = _placed(tensors[name], dtype, device)
            bar.update(tensors.entries[name].dtype.itemsize * read[name].numel())
    module.load_state_dict(read, assign=True)
    return module


def _bar(tensors: Tensors, progress: bool) -> tqdm:
    size = tensors.num_bytes
    return tqdm(total=size, unit="B", unit_scale=True, desc="weights", disable=not progress or size < LARGE)


def _placed(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """A copy that no longer hangs on a mapped file, in one move."""
    kept = dtype is None or not tensor.is_floating_point()
    return torch.empty(tensor.shape, dtype=tensor.dtype if kept else dtype, device=device).copy_(tensor)


def _check_meta(module: torch.nn.Module, expected: Mapping[str, Shape]) -> None:
    """Nothing may stay on the meta device after filling, and nothing that was there before may double the memory."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        stored = name in expected
        assert tensor.is_meta == stored, f"{name} is on {tensor.device}; build the module on the meta device"
