"""Journal: what brings the worlds of a sharded engine back to where they stood, on ranks that know nothing of them.

All worlds as they were at the last checkpoint, and the requests since, as they were sent. Asking these again, in order,
makes the same worlds to the bit. Knows messages; asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.conditioning import Context
from engine.ranks.control import Message


@dataclass
class Journal:
    """Checkpoints every few steps.

    Attributes:
        every: steps between checkpoints; 0 where nothing is kept.
        worlds: snapshots at the last one, by number.
        since: requests since then, and the contexts that there were, which have to live as long.
        steps: of these.
    """

    every: int
    worlds: dict[int, bytes] = field(default_factory=dict)
    since: list[tuple[Message, list[Context]]] = field(default_factory=list)
    steps: int = 0

    def add(self, message: Message, contexts: Sequence[Context]) -> None:
        """Note a request that was carried out, and what it may name."""
        if self.every:
            self.since.append((message, list(contexts)))
            self.steps += message.told["op"] == "step"

    @property
    def due(self) -> bool:
        """Whether a checkpoint is to be made."""
        return bool(self.every) and self.steps >= self.every

    def begin(self, worlds: Mapping[int, bytes]) -> None:
        """Go on from a checkpoint."""
        self.worlds, self.since, self.steps = dict(worlds), [], 0
