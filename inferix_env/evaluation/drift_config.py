"""What a long dream is measured with. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inferix_env.evaluation.drift import MODES, NUM_CHUNKS, Mode

FEWEST = 3  # frames that every scorer needs


@dataclass(frozen=True)
class Config:
    """Measure how a long dream drifts.

    Attributes:
        world: a shipped world's name, or a world folder.
        steps: to dream; those that fill no chunk are left out.
        chunks: that it is cut into.
        window: frames that are scored at once, or as many as a chunk has.
        real: windows of real episodes beside each chunk.
        policy: what presses the buttons: random, sticky, strafe, script:..., module:name (see
            inferix_env/evaluation/players.py). It begins anew with every chunk.
        seed: of the dream and of the real episodes, which take the following ones.
        mode: of the drift: normalised (late chunks weigh most), published-linear or published-log.
        env: the real env, in place of the card's.
        out: folder for drift.json, its pictures, and what a stopped run needs; out/evaluation/WORLD by default.
        again: forget what was kept and begin anew.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
    """

    world: str = "doom-take-cover"
    steps: int = 5_000
    chunks: int = NUM_CHUNKS
    window: int = 50
    real: int = 4
    policy: str = "sticky"
    seed: int = 20_000
    mode: Mode = "normalised"
    env: str | None = None
    out: Path | None = None
    again: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        if self.mode not in MODES:
            raise ValueError(f"--mode {self.mode!r}: expected one of {list(MODES)}")
        if self.chunks < 2 or self.length < FEWEST or self.real < 1 or self.seed < 0:
            raise ValueError(
                f"--steps {self.steps} --chunks {self.chunks} --window {self.window} --real {self.real} --seed "
                f"{self.seed}: expected at least 2 chunks, windows of at least {FEWEST} frames, a real one, and a seed "
                "of at least 0"
            )

    @property
    def length(self) -> int:
        """Frames of a window."""
        return min(self.window, self.steps // self.chunks)

    @property
    def windows(self) -> int:
        """Windows of a chunk."""
        return self.steps // self.chunks // max(1, self.length)
