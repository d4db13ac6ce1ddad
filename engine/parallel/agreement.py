"""All ranks say what they run, and go on only if they say the same: else each would wait for what no other does."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def wire() -> torch.device:
    """Where tensors have to lie for the default group to send them."""
    return torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")


def agree(facts: Mapping[str, str], group: ProcessGroup | None = None) -> None:
    """Compare facts over all ranks of a group, which call this together.

    Args:
        facts: by what they are called, such as {"exchange": "Ulysses 2"}.
        group: by default the default group.

    Raises:
        ValueError: ranks differ; all of them raise it, with what differs and how.
    """
    told = [json.loads(text) for text in texts(json.dumps(dict(facts)), group)]
    names = list(dict.fromkeys(name for each in told for name in each))
    differ = [name for name in names if len({each.get(name) for each in told}) > 1]
    if differ:
        rows = [
            f"{name}: " + ", ".join(f"rank {r} {each.get(name)!r}" for r, each in enumerate(told)) for name in differ
        ]
        raise ValueError(
            f"the ranks do not run the same ({'; '.join(rows)}): give all of them the same model, versions and exchange"
        )


def texts(text: str, group: ProcessGroup | None) -> list[str]:
    """Every rank's text, in the order of the ranks."""
    own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(wire())
    sizes = gathered(torch.tensor([len(own)], device=own.device), group)
    padded = own.new_zeros(max(int(n) for n in sizes))
    padded[: len(own)] = own
    pairs = zip(gathered(padded, group), sizes, strict=True)
    return [bytes(x[: int(n)].tolist()).decode() for x, n in pairs]


def gathered(x: Tensor, group: ProcessGroup | None) -> list[Tensor]:
    """The same tensor of every rank."""
    made = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(made, x, group=group)
    return made
