"""Settings: everything that can be set about a rollout. Knows no env and no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferix_env.logs import ANY_WORLD
from inferix_env.world_options import WorldOptions

DEFAULT_ENV = "inferix_env/DoomTakeCover-v0"


@dataclass(frozen=True)
class Settings(WorldOptions):
    """Play episodes in an env.

    Attributes:
        env: Gymnasium id, or "module:id"; by default Doom's Take Cover, or any world where --world or --preset says
            which.
        policy: random, sticky, sticky:0.8, script:"right*8, left*8, noop*4", script:PATH.jsonl, recorded:LOG.jsonl
            (the actions of a log, once), trained, trained:PATH, or driver (of CarRacing).
        episodes: how many.
        seed: of the first episode; each further one takes the next.
        out: the folder to write.
        max_steps: an episode is cut there, if the env has not ended it before.
        force: replace the episodes that `out` holds.
        video: write an mp4 of each episode.
        replay: a log to play again and compare, in place of playing new episodes; writes nothing.
        guard: signals of a world's doubt to log with each step: renoise, latent, action (see inferix_env/guard.py).
        guard_bound: an episode is cut where the one signal of --guard exceeds it.
    """

    env: str | None = None
    policy: str = "sticky"
    episodes: int = 1
    seed: int = 0
    out: Path | None = None
    max_steps: int = 1000
    force: bool = False
    video: bool = True
    replay: Path | None = None
    guard: tuple[str, ...] = ()
    guard_bound: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What is given of the env, by its names, as JSON can say it."""
        guard = {"guard": list(self.guard)} if self.guard else {}
        bound = {} if self.guard_bound is None else {"guard_bound": self.guard_bound}
        return super().options | guard | bound

    @property
    def env_id(self) -> str:
        return self.env or (DEFAULT_ENV if self.world is None and self.preset is None else ANY_WORLD)
