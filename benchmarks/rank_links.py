"""The links of the ranks of the default group as exchanges meet them: calls of a Mesh, packing among them.

How they are timed is engine/parallel/calibration.py's.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from benchmarks.rank_kernels import Timer
from engine.parallel.agreement import wire
from engine.parallel.calibration import measured
from engine.parallel.layout import Exchange
from engine.parallel.links import Links
from engine.parallel.mesh import Mesh


def links_between_products(timer: Timer) -> Links:
    """Measured links; all ranks call this together, and all get the same."""
    ranks = dist.get_world_size()
    mesh = Mesh.of(Exchange(1, "ring", ranks), timer.device)

    def exchange(x: Tensor) -> Any:
        return mesh.all_to_all("", list(x.chunk(ranks)), [len(x) // ranks] * ranks, "all")

    def gather(x: Tensor) -> Any:
        return mesh.gather("", x[: len(x) // ranks], [len(x) // ranks] * ranks)

    def hop(x: Tensor) -> Any:
        return mesh.pass_on("", x, len(x)).wait()

    fabric = measured((exchange, gather, hop), dist.group.WORLD, str(timer.device), str(wire()), timer.repeats)
    return Links(f"measured between products on {ranks} ranks", ranks, fabric, node=ranks, measured=True)
