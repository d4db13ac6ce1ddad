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

from engine import DiscreteActions, TextActions
from inferix_env.env import WorldSimEnv
from inferix_env.game_keys import is_game
from inferix_env.outputs import file_scale, open_recorder, world_name
from inferix_env.play_config import PlayConfig
from inferix_env.played import Played
from inferix_env.record import Recorder, write_sheet
from inferix_env.scripts import parse_script, words_of

HEADLESS_STEPS, PUBLISHED_STEPS = 120, 10
SHEET, COLUMNS = 24, 6  # pictures of a contact sheet
HOLDS = (6, 9, 4, 12, 3, 8, 5)  # steps for which the default script holds its actions, in turn
NEUTRAL_NAMES = ("none", "noop")
PUBLISHED_HOLDS = (2, 1)
# What happens in a text world of which nothing is asked.
PROMPTS = (
    "The camera moves on along the forest path and reaches a wide clearing with a calm lake in warm evening light.",
    "Mist rises over the lake, and the camera glides slowly across the still water towards distant hills.",
    "Snow begins to fall on the lake and the hills, and everything turns white and quiet.",
)


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
        config: seed, steps, scale, out and record count.
        script: actions to take, over and over; by default those of `lively_script`.
        reason: why there is no window, to say so.

    Raises:
        ValueError: PyAV is missing.
        OSError: a file cannot be written.
    """
    num_steps = config.steps or (PUBLISHED_STEPS if config.preset else HEADLESS_STEPS)
    print(f"{reason}: a scripted agent plays {world_name(env)} for {num_steps} steps", flush=True)
    script = script or ([""] if config.prompt else lively_script(env, config.seed))
    actions = itertools.islice(itertools.cycle(script), num_steps)
    name = f"{world_name(env)}-{config.seed}"
    tally, played = Tally(), Played(env, config, "script")
    recorder = open_recorder(env, config.out / f"{name}.mp4", config.scale)
    try:
        with recorder:
            run_script(env, tqdm(actions, total=num_steps, unit="step"), config.seed, recorder, tally, played)
    finally:
        print_log(played)
        if tally.steps and recorder.num_frames:  # an error leaves no clip
            print(recorder.path)
            sheet_scale = min(2, file_scale(env.world_spec.frame))
            print(write_sheet(config.out / f"{name}-sheet.png", tally.sheet(), COLUMNS, sheet_scale))
            print(tally.line())


def run_script(
    env: WorldSimEnv, actions: Iterable, seed: int, recorder: Recorder, tally: Tally, played: Played
) -> None:
    """Take the actions, and go on with the next seed after an end."""
    begin_episode(env, seed, recorder, played)
    for action in actions:
        begin = time.perf_counter()
        outcome = env.step(action)
        tally.seconds += time.perf_counter() - begin
        _, reward, terminated, truncated, info = outcome
        played.add(action, outcome)
        recorder.add(info["frames"])
        tally.add(info["frames"][-1], float(reward), terminated or truncated)
        if terminated or truncated:
            print_log(played)
            begin_episode(env, seed + tally.ended, recorder, played)


def print_log(played: Played) -> None:
    """Write the log of the episode that ran, if there is one, and say where."""
    path = played.end()
    if path:
        tqdm.write(str(path))


def begin_episode(env: WorldSimEnv, seed: int, recorder: Recorder, played: Played) -> None:
    """Reset; a block that a published world dreams then, or its picture, goes into the clip."""
    _, info = env.reset(seed=seed)
    played.begin(seed, info["frames"])
    if env.settings.preset:
        recorder.add(info["frames"])


def lively_script(env: WorldSimEnv, seed: int) -> list:
    """Actions for a world of any kind: its card's "script"; or each of a discrete one's but the neutral one in turn,
    prompts, what a Matrix-Game's single keys do, else random ones."""
    actions = env.world_spec.actions
    if "script" in env.card:
        return parse_script(env.card["script"], actions, words_of(env))
    holds: tuple[int, ...] = HOLDS
    if isinstance(actions, TextActions):
        return [action for prompt in PROMPTS for action in (prompt, "", "")]
    if is_game(actions):
        keymap = env.get_keys_to_action()
        moves, holds = list({str(x): x for keys, x in keymap.items() if len(keys) == 1}.values()), PUBLISHED_HOLDS
    elif isinstance(actions, DiscreteActions):
        names = actions.names or [""] * actions.n
        moves = [i for i, name in enumerate(names) if name.casefold() not in NEUTRAL_NAMES]
    else:
        env.action_space.seed(seed)
        moves = [env.action_space.sample() for _ in HOLDS]
    turns = range(len(moves) * len(holds))
    return [moves[i % len(moves)] for i in turns for _ in range(holds[i % len(holds)])]
