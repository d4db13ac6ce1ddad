"""What fidelity is measured with. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Measure the dream against reality.

    Attributes:
        world: a shipped world's name, or a world folder.
        episodes: real episodes to dream from, one place in each.
        limit: the longest, in steps.
        horizons: steps after which frames are compared.
        policies: who plays the real episodes, in turn: random, sticky, strafe, script:..., module:name (see
            inferix_env/evaluation/players.py).
        recorded: files or folders of recorded episodes, in place of played ones; see
            inferix_env/evaluation/recorded.py.
        learn: further real episodes that the probe of control learns from; 0 leaves control out.
        seed: of the first real episode; the following ones take the next.
        lpips: measure LPIPS too; needs the extra `metrics`.
        fvd: measure the Fréchet video distance too, by this VideoMAE (folder or hub id) or TorchScript I3D.
        shown: clips to show.
        env: the real env, in place of the card's.
        out: folder for fidelity.json and its pictures; out/evaluation/WORLD by default.
        again: measure again what was kept.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
    """

    world: str = "doom-take-cover"
    episodes: int = 24
    limit: int = 200
    horizons: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    policies: tuple[str, ...] = ("random", "sticky")
    recorded: tuple[Path, ...] = ()
    learn: int = 60
    seed: int = 22_000
    lpips: bool = False
    fvd: str | None = None
    shown: int = 3
    env: str | None = None
    out: Path | None = None
    again: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        if self.episodes < 2 or self.limit < 2 or min(self.learn, self.shown, self.seed) < 0:
            raise ValueError(
                f"--episodes {self.episodes} --limit {self.limit} --learn {self.learn} --shown {self.shown}: expected "
                "at least 2 episodes and steps, and none below 0"
            )
        if not self.horizons or min(self.horizons) < 1 or not self.policies:
            raise ValueError(f"--horizons {self.horizons} --policies {self.policies}: expected some, horizons from 1")
