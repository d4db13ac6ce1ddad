"""Faults of ranks: what shows that one has failed, which sign is the cause, and errors that are no faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.kv.pool import PoolFull

# What is raised here as it was on all ranks, by name.
KINDS: tuple[type[Exception], ...] = (ValueError, TypeError, LookupError, KeyError, IndexError, OSError)
KINDS += (FileNotFoundError, PermissionError, NotImplementedError, PoolFull)
ERRORS = {kind.__name__: kind for kind in KINDS}
# Which kind of sign is the cause: what other ranks see of a fault comes after.
ORDER = ("died", "memory", "silent", "error", "idle", "link")
MEANING = {"memory": "ran out of memory: {}", "link": "lost its link: {}", "error": "failed: {}"}


class WorkerLost(RuntimeError):
    """A rank of a sharded engine failed, and all of its processes were ended.

    Attributes:
        rank: the one that failed, or the first to be noticed.
        cause: what became of it.
    """

    def __init__(self, rank: int, cause: str, hint: str = ""):
        super().__init__(f"rank {rank} {cause}{hint}")
        self.rank, self.cause = rank, cause


@dataclass(frozen=True)
class Sign:
    """That a rank has failed, and how it shows; the kinds are those of ORDER."""

    kind: str
    rank: int
    cause: str


def cause_of(signs: Sequence[Sign]) -> Sign:
    """The sign of a fault that others follow from: of one kind, the first."""
    return min(signs, key=lambda sign: ORDER.index(sign.kind))


def sign_of(rank: int, told: Mapping[str, Any]) -> Sign | None:
    """That a rank has failed, if its answer says so."""
    if not told.get("fault"):
        return None
    return Sign(told["kind"], rank, MEANING[told["kind"]].format(f"{told['error']}: {told['words']}"))


def raised(answers: Mapping[int, Mapping[str, Any]], ranks: int) -> Exception | Sign | None:
    """What ranks raised: an error to raise here if so many did alike, else the sign that one did not do as the others.

    Args:
        answers: by rank; some may be missing.
    """
    failed = {rank: told for rank, told in answers.items() if "error" in told}
    if not failed:
        return None
    first, told = next(iter(sorted(failed.items())))
    if len(failed) == ranks and {each["error"] for each in failed.values()} == {told["error"]} <= set(ERRORS):
        return ERRORS[told["error"]](told["words"])
    return Sign("error", first, f"failed, and not as the others did: {told['error']}: {told['words']}")
