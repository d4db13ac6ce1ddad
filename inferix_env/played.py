"""Logs of what is played, one for each episode, so that a rollout can play it again frame for frame.

Knows an env's settings and logs; knows no window and no script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inferix_env.env import WorldSimEnv
from inferix_env.logs import ANY_WORLD, Log
from inferix_env.outputs import free_name, make_folder, world_name
from inferix_env.play_config import PlayConfig


class Played:
    """Keeps a log of each episode where `config.record` asks for it, and does nothing where it does not.

    Args:
        env: that is played.
        config: says how the env was made, and the folder.
        player: who plays, for the header.
    """

    def __init__(self, env: WorldSimEnv, config: PlayConfig, player: str):
        device = {} if env.settings.device == "cpu" else {"device": env.settings.device}
        self.about = {"env": ANY_WORLD, "make": config.options | device, "policy": player}
        self.env, self.config = env, config
        self.log: Log | None = None

    def begin(self, seed: int, frames: np.ndarray) -> None:
        """An episode of this seed has begun and shown its first frames, uint8 [T, H, W, 3]."""
        if self.config.record:
            self.log = Log.begin(seed, frames, self.about)

    def add(self, action: Any, outcome: tuple) -> None:
        """A step was taken."""
        if self.log is not None:
            self.log.add(action, outcome, outcome[4]["frames"])

    def end(self) -> Path | None:
        """The episode is over, or given up: write its log, if it has a step, and return its path.

        Raises:
            OSError: the file cannot be written; what it was to hold is given up.
        """
        log, self.log = self.log, None
        if log is None or not log.lines:
            return None
        make_folder(self.config.out)
        return log.write(free_name(self.config.out, f"{world_name(self.env)}-{log.header['seed']}", ".jsonl"))
