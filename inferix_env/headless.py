"""The player without a display: a script plays a world into a clip and a contact sheet.

Knows the env and files; knows no window and no keys.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from engine import DiscreteActions
from inferix_env.env import WorldSimEnv
from inferix_env.outputs import open_recorder, world_name
from inferix_env.play_config import PlayConfig
from inferix_env.record import Recorder, write_sheet

HEADLESS_STEPS = 120
SHEET, COLUMNS = 24, 6  # pictures of a contact sheet
HOLDS = (6, 9, 4, 12, 3, 8, 5)  # steps for which the default script holds its actions, in turn
NEUTRAL_NAMES = ("none", "noop")


@dataclass
class Tally:
    """What a scripted agent has played, and some of the frames it saw, evenly spread however long it goes on."""

    steps: int = 0
    ended: int = 0
    total: float = 0.0
    seconds: float = 0.0
    frames: list[np.ndarray] = field(default_factory=list)
    stride: int = 1

    def add(self, frame: np.ndarray, reward: float, ended: bool) -> None:
        """Count a step, and keep its last frame if it is its turn."""
        if self.steps % self.stride == 0:
            self.frames.append(frame)
        if len(self.frames) == 2 * SHEET:
            self.frames, self.stride = self.frames[::2], 2 * self.stride
        self.steps, self.ended, self.total = self.steps + 1, self.ended + ended, self.total + reward

    def sheet(self) -> np.ndarray:
        """Frames of a contact sheet, uint8 [B, H, W, 3]."""
        count = len(self.frames)
        return np.stack([self.frames[i] for i in np.linspace(0, count - 1, min(SHEET, count)).round().astype(int)])

    def line(self) -> str:
        rate = self.steps / self.seconds if self.seconds else 0.0
        episodes = f"{self.ended} episode{'s' * (self.ended != 1)} ended"
        return f"{self.steps} steps, {episodes}, return {self.total:z.1f}, {rate:.1f} steps/s"


def play_headless(env: WorldSimEnv, config: PlayConfig, script: list | None, reason: str) -> None:
    """Let a script play, and write a clip and a contact sheet of it, also of what there is at Ctrl-C.

    Args:
        env: a world's env.
        config: seed, steps, scale and out count.
        script: actions to take, over and over; by default those of `lively_script`.
        reason: why there is no window, to say so.

    Raises:
        ValueError: PyAV is missing.
        OSError: a file cannot be written.
    """
    num_steps = config.steps or HEADLESS_STEPS
    print(f"{reason}: a scripted agent plays {world_name(env)} for {num_steps} steps", flush=True)
    actions = itertools.islice(itertools.cycle(script or lively_script(env, config.seed)), num_steps)
    name = f"{world_name(env)}-{config.seed}"
    tally = Tally()
    recorder = open_recorder(env, config.out / f"{name}.mp4", config.scale)
    try:
        with recorder:
            run_script(env, tqdm(actions, total=num_steps, unit="step"), config.seed, recorder, tally)
    finally:
        if tally.steps and recorder.num_frames:  # an error leaves no clip
            print(recorder.path)
            print(write_sheet(config.out / f"{name}-sheet.png", tally.sheet(), COLUMNS))
            print(tally.line())


def run_script(env: WorldSimEnv, actions: Iterable, seed: int, recorder: Recorder, tally: Tally) -> None:
    """Take the actions, and go on with the next seed after an end."""
    env.reset(seed=seed)
    for action in actions:
        begin = time.perf_counter()
        _, reward, terminated, truncated, info = env.step(action)
        tally.seconds += time.perf_counter() - begin
        recorder.add(info["frames"])
        tally.add(info["frames"][-1], float(reward), terminated or truncated)
        if terminated or truncated:
            env.reset(seed=seed + tally.ended)


def lively_script(env: WorldSimEnv, seed: int) -> list:
    """Actions for a world of any kind: each of a discrete one's but the neutral one in turn, else random ones."""
    actions = env.world_spec.actions
    if isinstance(actions, DiscreteActions):
        names = actions.names or [""] * actions.n
        moves = [i for i, name in enumerate(names) if name.casefold() not in NEUTRAL_NAMES]
    else:
        env.action_space.seed(seed)
        moves = [env.action_space.sample() for _ in HOLDS]
    turns = range(len(moves) * len(HOLDS))
    return [moves[i % len(moves)] for i in turns for _ in range(HOLDS[i % len(HOLDS)])]
