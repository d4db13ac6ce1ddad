"""Decoding a block in strips, and MAGI-1's in tiles, on the ranks of the default group, against one rank."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.models import randomise
from benchmarks.rank_runs import gathered
from engine.codecs.magi_vae import MagiVae
from engine.codecs.taehv import Taehv
from engine.codecs.wan_vae import WanVae
from engine.parallel.agreement import wire
from engine.parallel.calibration import slowest
from engine.parallel.layout import Exchange
from engine.parallel.mesh import Mesh
from engine.parallel.tiles import spread
from engine.parallel.tiles_costs import Latents, decode_transfers
from engine.published import MagiVaeSpec, WanVaeSpec

SMALL_WAN = WanVaeSpec(width=8, multiples=(1, 2, 2, 2), depth=1)
SMALL_MAGI = MagiVaeSpec(width=512, heads=4, layers=1, hidden=64, grid=(3, 32, 32))
# Latents of a block: small ones for a CPU, published ones for a GPU.
SMALL = {"wan": (3, 16, 12, 12), "taehv": (3, 16, 12, 12), "magi": (3, 16, 40, 24)}
FULL = {"wan": (3, 16, 60, 104), "taehv": (3, 16, 60, 104), "magi": (6, 16, 90, 90)}


def codecs(small: bool) -> dict[str, nn.Module]:
    """Without weights."""
    with torch.device("meta"):
        return {
            "wan": WanVae(SMALL_WAN if small else WanVaeSpec(), encoder=False),
            "taehv": Taehv(16, (32, 16, 16, 16) if small else (256, 128, 64, 64), encoder_width=0),
            "magi": MagiVae(SMALL_MAGI if small else MagiVaeSpec(), encoder=False),
        }


def decoded(device: torch.device, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """A row of each codec; the same on all ranks. The second block of a world, again and again."""
    small = device.type == "cpu"
    return [
        one(name, made, (SMALL if small else FULL)[name], device, dtype, repeats)
        for name, made in codecs(small).items()
    ]


def one(
    name: str, codec: nn.Module, size: tuple[int, ...], device: torch.device, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """One codec."""
    f, _, h, w = size
    whole: Any = randomise(codec, device, dtype, 0)
    latents = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0)).to(device)
    mesh = Mesh.of(Exchange(dist.get_world_size()), device)
    kinds = [whole, spread(whole, mesh)]
    states, frames = [kind.decode(latents[0])[1] for kind in kinds], [None, None]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for i, kind in enumerate(kinds):
            mesh.reset_counts()
            dist.barrier()
            started = time.perf_counter()
            if i or dist.get_rank() == 0:
                frames[i] = kind.decode(latents[1], states[i])[0]
                _ = frames[i].flatten()[:1].cpu()
            times[i].append(slowest(time.perf_counter() - started, dist.group.WORLD, str(wire())))
    formula = decode_transfers(whole, Latents(1, f, h, w), mesh.ranks)
    off = 0 if frames[0] is None else int((frames[0].int() - frames[1].int()).abs().max())
    return {
        "codec": name,
        "one_rank_ms": 1e3 * statistics.median(times[0]),
        "ms": 1e3 * statistics.median(times[1]),
        "sent_bytes": gathered(sum(mesh.sent.values())),
        "predicted_bytes": [sum(t.sent[rank] for t in formula) for rank in range(mesh.ranks)],
        "calls": sum(mesh.calls.values()),
        "levels_off": off,
    }
