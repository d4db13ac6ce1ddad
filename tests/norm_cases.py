"""Inputs of the VAE's activation for its tests, and `python -m tests.norm_cases FILE`: the Triton kernel's outputs.

That command is run with TRITON_INTERPRET=1, which has to be set before Triton is imported: hence its own process.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.codecs.history import LAYOUT

# Worlds, channels, frames, height, width, precision.
CASES = {
    "narrow": (2, 6, 3, 4, 5, torch.float32),
    "published width": (1, 96, 2, 5, 7, torch.float32),
    "widest": (2, 384, 1, 3, 3, torch.float16),
    "bf16": (1, 24, 2, 4, 4, torch.bfloat16),
}
PAST = 2


def inputs(name: str, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """x, gamma and the room that a convolution reads, whose first frames are not to be written."""
    n, c, t, h, w, dtype = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, t, h, w, generator=generator) * 3
    x[0, :, 0, 0, 0] = 0
    gamma = torch.randn(c, 1, 1, 1, generator=generator)
    room = torch.full((n, c, PAST + t, h, w), 7.0, dtype=dtype, device=device)
    x, room = x.to(device, dtype).contiguous(memory_format=LAYOUT), room.contiguous(memory_format=LAYOUT)
    return x, gamma.to(device, dtype), room


def main() -> None:
    from engine.codecs.norm_kernel import activate_triton

    outputs = {}
    for name in CASES:
        x, gamma, room = inputs(name)
        activate_triton(x, gamma, room[:, :, PAST:])
        outputs[name] = room.contiguous()
    save_file(outputs, sys.argv[1])


if __name__ == "__main__":
    main()
