"""Which precision a device trains in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from engine.hardware import has_fast_bf16


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 autocast where the device computes in it, else plain fp32."""
    if has_fast_bf16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
