"""Which pages a world keeps and a block may see: a page table per world, in logical order.

Knows spec; does not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.spec import KVPolicy


@dataclass
class PageTable:
    """The pages of one world: committed ones by position, ascending, and those of the block in flight."""

    length: int = 0
    positions: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)

    def history(self, policy: KVPolicy) -> list[int]:
        """Pages that the block at `length` sees, in logical order."""
        where = dict(zip(self.positions, self.pages, strict=True))
        return [where[p] for p in policy.visible(self.length)]

    def commit(self, policy: KVPolicy) -> list[int]:
        """Make the block in flight history; return the pages that no later block can see."""
        self.positions += range(self.length, self.length + len(self.in_flight))
        self.pages += self.in_flight
        self.length += len(self.in_flight)
        self.in_flight = []
        seen = set(policy.visible(self.length)) | set(range(min(policy.sink, self.length)))
        kept = [(p, page) for p, page in zip(self.positions, self.pages, strict=True) if p in seen]
        dropped = [page for p, page in zip(self.positions, self.pages, strict=True) if p not in seen]
        self.positions, self.pages = [p for p, _ in kept], [page for _, page in kept]
        return dropped


def pages_needed(policy: KVPolicy, block: int, full: int) -> int:
    """Pages a world can hold at once: sinks, window and the block in flight; `full` where nothing is dropped."""
    return (full if policy.window is None else policy.sink + policy.window) + block
