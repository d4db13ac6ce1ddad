"""Episode: what a player knows of the episode so far, and how it is shown. Knows no env and no window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Episode:
    """What is known of an episode so far; `over` says why it ended, `may_end` whether the world knows of ends."""

    seed: int
    steps: int = 0
    total: float = 0.0
    end_probability: float = 0.0
    variables: dict[str, float] = field(default_factory=dict)
    over: str = ""
    prompt: str = ""
    may_end: bool = True

    def add(self, outcome: tuple[Any, float, bool, bool, dict[str, Any]]) -> None:
        """Count what `env.step` returned."""
        _, reward, terminated, truncated, info = outcome
        self.steps += 1
        self.total += float(reward)
        self.end_probability, self.variables = info["end_probability"], info["variables"]
        self.prompt = info.get("prompt", "")
        self.over = "ended" if terminated else "out of time" if truncated else ""

    def numbers(self) -> list[tuple[str, str]]:
        """(label, value) of what there is to show."""
        return [
            ("step", str(self.steps)),
            ("return", f"{self.total:z.1f}"),
            *([("p(end)", f"{self.end_probability:.1%}")] if self.may_end else []),
            ("seed", str(self.seed)),
            *((name, f"{value:z.4g}") for name, value in self.variables.items()),
        ]
