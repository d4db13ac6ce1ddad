"""A world's page table: which pages it holds, and what of them a block may see, in logical order.

Knows spec; does not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.spec import KVPolicy


@dataclass(frozen=True)
class Reach:
    """What the next block of one world may see, by position, ascending.

    Attributes:
        positions, pages: what it always sees.
        choice_positions, choice_pages: what a top-k policy chooses from.
    """

    positions: list[int]
    pages: list[int]
    choice_positions: list[int]
    choice_pages: list[int]


@dataclass
class PageTable:
    """The pages of one world: committed ones by position, ascending, and those of the block in flight.

    Attributes:
        length: latent frames committed so far: the position of the next one.
        origin: where the history begins: 0, unless what came before was given up.
    """

    length: int = 0
    origin: int = 0
    positions: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)

    def reach(self, policy: KVPolicy) -> Reach:
        """What the block at `length` may see."""
        where = dict(zip(self.positions, self.pages, strict=True))
        always, choices = self._wanted(policy)
        return Reach(always, [where[p] for p in always], choices, [where[p] for p in choices])

    def _wanted(self, policy: KVPolicy) -> tuple[list[int], list[int]]:
        """Positions that the next block always sees, and those that it chooses from."""
        always = policy.visible(self.length, self.origin)
        return always, [p for p in policy.choices(self.length) if p >= self.origin and p not in always]

    def commit(self, policy: KVPolicy) -> list[int]:
        """Make the block in flight history; return the pages that no later block can see."""
        self.positions += range(self.length, self.length + len(self.in_flight))
        self.pages += self.in_flight
        self.length += len(self.in_flight)
        self.in_flight = []
        return self.keep(policy)

    def keep(self, policy: KVPolicy) -> list[int]:
        """Drop the pages that no later block can see, and return them."""
        always, choices = self._wanted(policy)
        return self.drop({*self.positions} - {*always, *choices})

    def drop(self, positions: set[int]) -> list[int]:
        """Forget the pages at some positions, and return them."""
        rows = list(zip(self.positions, self.pages, strict=True))
        self.positions = [p for p, _ in rows if p not in positions]
        self.pages = [page for p, page in rows if p not in positions]
        return [page for p, page in rows if p in positions]

    def put(self, positions: list[int]) -> None:
        """Make the pages in flight history at positions that hold none."""
        rows = sorted([*zip(self.positions, self.pages, strict=True), *zip(positions, self.in_flight, strict=True)])
        self.positions, self.pages = [p for p, _ in rows], [page for _, page in rows]
        self.in_flight = []

    def outside(self, policy: KVPolicy) -> list[int]:
        """Places in the table of pages that have left the window and are no sinks: what may live on the host."""
        recent = 0 if policy.window is None else max(0, self.length - policy.window)
        return [i for i, p in enumerate(self.positions) if self.origin + policy.sink <= p < recent]

    def copy(self) -> PageTable:
        """The same table in lists of its own."""
        return replace(self, positions=[*self.positions], pages=[*self.pages], in_flight=[*self.in_flight])
