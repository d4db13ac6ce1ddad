"""A plan as text: one line an exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEADS = ("exchange", "ms", "waits", "GB sent", "calls", "GB held", "")


@dataclass(frozen=True)
class Row:
    """An exchange: seconds of a block, of these waiting, bytes sent and held by a rank, calls, and a remark; no figures
    where it is refused."""

    name: str
    seconds: float | None = None
    waiting: float = 0.0
    sent: int = 0
    calls: int = 0
    memory: int = 0
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        if self.seconds is None:
            return (self.name, *["-"] * 5, self.note)
        times = (f"{self.seconds * 1e3:.1f}", f"{self.waiting * 1e3:.1f}")
        return (self.name, *times, f"{self.sent / 1e9:.3f}", f"{self.calls:,}", f"{self.memory / 1e9:.2f}", self.note)


def table(headline: str, rows: Sequence[Row], footer: str) -> str:
    """Columns as wide as they need to be; names and remarks on the left of theirs."""
    lines = [HEADS, *(r.cells for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    made = [
        "  ".join(cell.ljust(w) if i in (0, len(HEADS) - 1) else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([headline, "", *(line.rstrip() for line in made), "", footer])
