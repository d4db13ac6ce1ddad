"""Which policies are ranked, and how. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Rank policies in the dream and in reality.

    Attributes:
        world: a shipped world's name, or a world folder.
        policies: to rank: random, sticky, strafe, noop, script:..., module:name (see
            inferix_env/evaluation/players.py); those of --returns come after them.
        returns: a JSON of returns.
        episodes: of each policy, in reality and in the dream.
        limit: the longest, in steps.
        seed: of the first episode; the following ones take the next, the same for every policy.
        env: the real env, in place of the card's.
        out: folder for ranking.json and its picture; out/evaluation/WORLD by default.
        again: measure again what was kept.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
    """

    world: str = "doom-take-cover"
    policies: tuple[str, ...] = ("random", "sticky", "sticky:20", "noop")
    returns: Path | None = None
    episodes: int = 16
    limit: int = 150
    seed: int = 24_000
    env: str | None = None
    out: Path | None = None
    again: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        if self.episodes < 2 or self.limit < 1 or self.seed < 0:
            raise ValueError(
                f"--episodes {self.episodes} --limit {self.limit} --seed {self.seed}: expected at least 2 episodes of "
                "at least 1 step, and a seed of at least 0"
            )
        if len(set(self.policies)) < len(self.policies):
            raise ValueError(f"--policies {list(self.policies)}: expected each once")
