"""python -m inferix_env.play: play a world in a window; with no display, a scripted agent plays into a clip.

The window stays alive however slow the model is: steps run in a thread, one at a time. `--help` lists every setting.
Knows the env, its window by plain names of keys, and files; knows nothing of pygame or of how a step is made.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from engine import ActionSpec, DiscreteActions
from inferix_env.env import WorldSimEnv
from inferix_env.record import Recorder, write_sheet
from inferix_env.scripts import load_script

if TYPE_CHECKING:
    from inferix_env.viewer import Event, Hud, Window

TICK = 1 / 60  # seconds between two looks at the events
RESTART_AFTER = 2.0  # seconds from an end to the next episode
NOTE_FOR = 2.5  # seconds a note stands
HEADLESS_STEPS = 120
FILE_SCALE = 4
SHEET, COLUMNS = 24, 6  # pictures of a contact sheet
HOLDS = (6, 9, 4, 12, 3, 8, 5)  # steps for which the default script holds its actions, in turn
NEUTRAL_NAMES = ("none", "noop")

# What a key does, unless the world takes it for itself; the second key then still does it.
COMMANDS = {
    "reset": (("r", "f5"), "start again with the next seed"),
    "pause": (("space", "f6"), "pause"),
    "single": (("n", "f7"), "one step, while paused"),
    "screenshot": (("s", "f2"), "save a picture"),
    "record": (("v", "f3"), "start or end a recording"),
    "help": (("f1",), "this help"),
    "quit": (("escape",), "quit"),
}


@dataclass(frozen=True)
class PlayConfig:
    """Play a world in a window; with no display, a scripted agent plays into a clip and a contact sheet.

    Keys in the window: those of the world, held; R reset, Space pause, N one step, S screenshot, V recording, F1 help,
    Esc quit.

    Attributes:
        world: a shipped world's name, or a world folder.
        seed: of the first episode; later ones count on from it.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
        num_steps: denoising passes of a step; the world's own by default.
        scale: how many pixels wide a pixel is drawn; by default what fits the screen, and 4 in files.
        out: folder for clips and pictures.
        script: actions such as "right*8,left*4,none*2", repeated, or a .jsonl file; in a window they are taken
            while no key is held.
        steps: when to stop; by default after 120 steps, and never in a window.
        headless: open no window.
    """

    world: str = "doom-take-cover"
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    num_steps: int | None = None
    scale: int | None = None
    out: Path = Path("out")
    script: str | None = None
    steps: int | None = None
    headless: bool = False


@dataclass
class Episode:
    """What is known of an episode so far; `over` says why it ended."""

    seed: int
    steps: int = 0
    total: float = 0.0
    end_probability: float = 0.0
    variables: dict[str, float] = field(default_factory=dict)
    over: str = ""

    def add(self, outcome: tuple[Any, float, bool, bool, dict[str, Any]]) -> None:
        """Count what `env.step` returned."""
        _, reward, terminated, truncated, info = outcome
        self.steps += 1
        self.total += float(reward)
        self.end_probability, self.variables = info["end_probability"], info["variables"]
        self.over = "ended" if terminated else "out of time" if truncated else ""


class Keys:
    """Which keys are down, and what that means as an action.

    A key that was tapped between two steps counts for the next one. Of the combinations that are held the longest
    wins, then the one with the key pressed last.
    """

    def __init__(self, keymap: dict[tuple[int, ...], Any]):
        self.keymap = keymap
        self.codes = list(dict.fromkeys(code for combination in keymap for code in combination))
        self.held: dict[int, int] = {}
        self.tapped: dict[int, int] = {}
        self.presses = itertools.count()

    def press(self, code: int, tap: bool = True) -> None:
        self.held[code] = next(self.presses)
        if tap:
            self.tapped[code] = self.held[code]

    def release(self, code: int) -> None:
        self.held.pop(code, None)

    def clear(self) -> None:
        self.held, self.tapped = {}, {}

    def any(self) -> bool:
        """Whether any key acts on the next step."""
        return bool(self.held or self.tapped)

    def take(self) -> Any:
        """The action of the next step; taps are used up."""
        down = {**self.tapped, **self.held}
        self.tapped = {}
        possible = [keys for keys in self.keymap if all(code in down for code in keys)]
        return self.keymap[max(possible, key=lambda keys: (len(keys), max((down[code] for code in keys), default=-1)))]


class Session:
    """Interactive play: keys come in through `handle`, `tick` starts steps when they are due and draws.

    Neither waits for the model. Steps and resets run in one thread, one at a time.

    Args:
        env: a world's env; the session closes it.
        window: with a strip; the session closes it.
        config: seed, out, steps and scale count.
        script: actions to take, over and over, while no key is held.
        clock: seconds.
    """

    def __init__(
        self,
        env: WorldSimEnv,
        window: Window,
        config: PlayConfig,
        script: list | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.env, self.window, self.config, self.clock = env, window, config, clock
        self.script = itertools.cycle(script) if script else None
        self.keys = Keys(env.get_keys_to_action())
        self.cap_names = {code: window.key_name(code) for code in self.keys.codes}
        self.commands = free_commands(set(self.cap_names.values()))
        self.help_rows = rows_of_help(self.keys.keymap, self.cap_names, env.world_spec.actions, self.commands)
        self.worker = ThreadPoolExecutor(1, "steps")
        self.pending: Future | None = None
        self.finish: Callable[[Any], None] = self._begin
        self.episode = Episode(config.seed)
        self.next_seed = config.seed
        self.wants_reset, self.singles, self.num_steps, self.num_episodes = True, 0, 0, 0
        self.paused, self.helping, self.done = False, False, False
        self.frames: deque[np.ndarray] = deque()
        self.frame = np.zeros((*env.world_spec.frame, 3), np.uint8)
        self.num_frames = env.world_spec.block  # of a step, until the first one tells
        self.due = self.frame_due = self.over_at = 0.0
        self.finished: deque[float] = deque(maxlen=16)
        self.recorder: Recorder | None = None
        self.note, self.note_until = "F1 help", clock() + 2 * NOTE_FOR
        self.drawn: tuple[np.ndarray, Hud] | None = None

    def run(self) -> None:
        """Play until the user quits."""
        while not self.done:
            for event in self.window.events():
                self.handle(event)
            self.tick()
            self._rest()

    def handle(self, event: Event) -> None:
        """Take one event of the window."""
        if event.kind == "close":
            self.done = True
        elif event.kind == "expose":
            self.drawn = None
        elif event.kind == "leave":
            self.keys.clear()
        elif event.code in self.cap_names:
            if event.kind == "press":
                self.keys.press(event.code, tap=not self.paused)
            else:
                self.keys.release(event.code)
        elif event.kind == "press" and event.name in self.commands:
            getattr(self, self.commands[event.name])()

    def tick(self) -> None:
        """Take in a finished step, start the next one if it is due, and draw. Never waits for the model."""
        if self.pending is not None and self.pending.done():
            result, self.pending = self.pending.result(), None
            self.finish(result)
        if self.pending is None and not self.done:
            self._start()
        self._draw()

    def reset(self) -> None:
        self.wants_reset = True

    def pause(self) -> None:
        self.paused, self.singles = not self.paused, 0
        self.finished.clear()

    def single(self) -> None:
        if self.paused:
            self.singles += 1

    def help(self) -> None:
        self.helping = not self.helping

    def quit(self) -> None:
        self.done = True

    def screenshot(self) -> None:
        path = free_name(self.config.out, f"{world_name(self.env)}-{self.episode.seed}", ".png")
        try:
            make_folder(path.parent)
            self._tell(f"saved {write_sheet(path, self.frame[None], 1, self.config.scale or FILE_SCALE)}")
        except OSError as error:
            self._tell(f"not saved: {error}")

    def record(self) -> None:
        """Start a recording, or end the one that runs."""
        if self.recorder is not None:
            self._end_recording()
            return
        path = free_name(self.config.out, f"{world_name(self.env)}-{self.episode.seed}", ".mp4")
        try:
            self.recorder = open_recorder(self.env, path, self.config.scale)
        except (ValueError, OSError) as error:
            self._tell(f"not recording: {error}")

    def close(self) -> None:
        """End a recording, close the window, and wait for the step in flight. Closing twice is fine."""
        if self.recorder is not None:
            self._end_recording()
        self.window.close()
        self.worker.shutdown()
        self.env.close()

    def _start(self) -> None:
        """Start a reset or a step in the thread, if one is wanted now."""
        now = self.clock()
        if self.wants_reset or (self.episode.over and now - self.over_at >= RESTART_AFTER and not self.paused):
            self.wants_reset, self.singles = False, 0
            self._submit(self._begin, partial(self.env.reset, seed=self.next_seed))
        elif self.singles and not self.episode.over:
            self.singles -= 1
            self._submit(self._advance, self.env.step, self._action())
        elif not (self.paused or self.episode.over) and now >= self.due:
            period = self.num_frames / self.env.world_spec.fps
            self.due = max(self.due, now - period) + period
            self._submit(self._advance, self.env.step, self._action())

    def _submit(self, finish: Callable[[Any], None], work: Callable[..., Any], *arguments: Any) -> None:
        self.finish, self.pending = finish, self.worker.submit(work, *arguments)

    def _action(self) -> Any:
        if self.script is not None and not self.keys.any():
            return next(self.script)
        return self.keys.take()

    def _begin(self, opened: tuple[np.ndarray, dict[str, Any]]) -> None:
        """An episode has begun."""
        self.episode = Episode(self.next_seed, variables=opened[1]["variables"])
        self.next_seed += 1
        self.num_episodes += 1
        self.keys.tapped.clear()
        self.frames = deque([opened[1]["frames"][-1]])
        self.frame_due = 0.0
        self.finished.clear()
        self.due = self.clock()

    def _advance(self, outcome: tuple[Any, float, bool, bool, dict[str, Any]]) -> None:
        """A step has come."""
        self.episode.add(outcome)
        frames = outcome[4]["frames"]
        self.num_frames = len(frames)
        self.frames.extend(frames)
        self.over_at = self.clock()
        self.finished.append(self.over_at)
        if self.recorder is not None:
            self._record_frames(self.recorder, frames)
        self.num_steps += 1
        self.done = self.done or self.num_steps == self.config.steps

    def _record_frames(self, recorder: Recorder, frames: np.ndarray) -> None:
        try:
            recorder.add(frames)
        except OSError as error:
            self.recorder = None
            self._tell(f"recording lost: {error}")

    def _end_recording(self) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        try:
            path = recorder.close()
        except OSError as error:
            self._tell(f"recording lost: {error}")
            return
        self._tell(f"saved {path}" if path else "nothing recorded: no step was taken")

    def _tell(self, note: str) -> None:
        """Show a line in the window and on the command line."""
        print(note, flush=True)
        self.note, self.note_until = note, self.clock() + NOTE_FOR

    def _rest(self) -> None:
        """Sleep until something may have happened."""
        left = self.due - self.clock()
        if self.pending is not None:
            concurrent.futures.wait([self.pending], TICK)
        else:  # a time that has passed starts nothing: it is paused, or the episode has ended
            time.sleep(min(TICK, left) if left > 0 else TICK)

    def _draw(self) -> None:
        """Draw, if anything has changed. Frames of a block come at the world's pace, its first one at once."""
        now = self.clock()
        if self.frames and (now >= self.frame_due or len(self.frames) >= self.num_frames):
            self.frame = self.frames.popleft()
            self.frame_due = now + 1 / self.env.world_spec.fps
        hud = self._hud(now)
        if self.drawn is None or self.frame is not self.drawn[0] or hud != self.drawn[1]:
            self.window.show(self.frame, hud)
            self.drawn = self.frame, hud

    def _hud(self, now: float) -> Hud:
        return {
            "numbers": self._numbers(),
            "keys": [(name, code in self.keys.held) for code, name in self.cap_names.items()],
            "recording": f"REC {self.recorder.num_frames / self.env.world_spec.fps:.0f} s" if self.recorder else "",
            "paused": self.paused,
            "banner": self._banner(),
            "note": self.note if now < self.note_until else "",
            "help": self.help_rows if self.helping else [],
        }

    def _numbers(self) -> list[tuple[str, str]]:
        """(label, value) of what is known of the episode."""
        episode = self.episode
        return [
            (f"steps/s of {self.env.world_spec.fps / self.num_frames:.3g}", self._rate()),
            ("step", str(episode.steps)),
            ("return", f"{episode.total:z.1f}"),
            ("p(end)", f"{episode.end_probability:.1%}"),
            ("seed", str(episode.seed)),
            *((name, f"{value:z.4g}") for name, value in episode.variables.items()),
        ]

    def _rate(self) -> str:
        """Measured steps a second, while it runs."""
        if self.paused or len(self.finished) < 2:
            return "-"
        return f"{(len(self.finished) - 1) / (self.finished[-1] - self.finished[0]):.1f}"

    def _banner(self) -> tuple[str, str]:
        episode = self.episode
        if episode.over:
            return f"{episode.over} - R to reset", f"return {episode.total:z.1f} in {episode.steps} steps"
        return ("", "") if self.num_episodes else ("opening", world_name(self.env))


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


def play_headless(env: WorldSimEnv, config: PlayConfig, script: list) -> None:
    """Let a script play, and write a clip and a contact sheet of it, also of what there is at Ctrl-C."""
    actions = itertools.islice(itertools.cycle(script), config.steps or HEADLESS_STEPS)
    stem = config.out / f"{world_name(env)}-{config.seed}"
    tally = Tally()
    try:
        with open_recorder(env, stem.with_name(stem.name + ".mp4"), config.scale) as recorder:
            run_script(
                env, tqdm(actions, total=config.steps or HEADLESS_STEPS, unit="step"), config.seed, recorder, tally
            )
    finally:
        if tally.steps and recorder.num_frames:
            print(recorder.path)
            print(write_sheet(stem.with_name(stem.name + "-sheet.png"), tally.sheet(), COLUMNS))
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


def play_in_window(env: WorldSimEnv, config: PlayConfig, script: list | None) -> None:
    """Play in a window until the user quits."""
    from inferix_env.viewer import Window

    height, width = env.world_spec.frame
    title = env.card.get("title", world_name(env))
    window = Window((width, height), title, env.world_spec.fps, config.scale, strip=True)
    session = Session(env, window, config, script)
    try:
        session.run()
    finally:
        session.close()


def why_no_window(config: PlayConfig) -> str:
    """Why no window can be shown, or "" if one can."""
    if config.headless:
        return "headless"
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))):
        return "no display"
    try:
        from inferix_env import viewer
    except ImportError as error:
        raise ValueError(f"a window needs pygame-ce: pip install 'inferix-env[play]' ({error})") from None
    return "" if viewer.is_seen() else "the display cannot be reached"


def free_commands(taken: set[str]) -> dict[str, str]:
    """Key -> what it does in a session, for the keys that the world does not take."""
    return {key: command for command, (keys, _) in COMMANDS.items() for key in keys if key not in taken}


def rows_of_help(
    keymap: dict[tuple[int, ...], Any], names: dict[int, str], actions: ActionSpec, commands: dict[str, str]
) -> list[tuple[list[str], str]]:
    """(names of keys, what they do): the world's actions, then the session's commands."""
    acts: dict[str, list[str]] = {}
    for codes, action in keymap.items():
        label = actions.names[action] if isinstance(actions, DiscreteActions) and actions.names else f"action {action}"
        acts.setdefault(label, []).extend(names[code] for code in codes)
    first = {command: key for key, command in reversed(commands.items())}
    rows = [(keys, label) for label, keys in acts.items() if keys]
    return rows + [([first[command]], text) for command, (_, text) in COMMANDS.items() if command in first]


def world_name(env: WorldSimEnv) -> str:
    """The name of a world as the command takes it."""
    return env.folder.name.replace("_", "-")


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """`folder/stem-001.suffix`, or the first number that is not taken."""
    paths = (folder / f"{stem}-{number:03d}{suffix}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def make_folder(path: Path) -> None:
    """Make a folder for files, unless it is there; OSError, with the way out, if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder {str(path)!r} cannot be made ({error.strerror}): choose another with --out") from None


def open_recorder(env: WorldSimEnv, path: Path, scale: int | None) -> Recorder:
    """A recorder of this world's frames; makes the folder."""
    make_folder(path.parent)
    return Recorder(path, env.world_spec.frame, env.world_spec.fps, scale or FILE_SCALE)


def check(config: PlayConfig) -> None:
    """Raise ValueError for a setting that cannot be."""
    for name, value, least in (("seed", config.seed, 0), ("scale", config.scale, 1), ("steps", config.steps, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")


def play(config: PlayConfig) -> None:
    """Play as configured.

    Raises:
        ValueError: the world, the script or a setting is not what it should be, or an extra is missing.
        OSError: a file cannot be written.
    """
    check(config)
    reason = why_no_window(config)
    env = WorldSimEnv(config.world, config.device, config.dtype, config.num_steps)
    script = load_script(config.script, env.world_spec.actions) if config.script else None
    if not reason:
        play_in_window(env, config, script)
        return
    num_steps = config.steps or HEADLESS_STEPS
    print(f"{reason}: a scripted agent plays {world_name(env)} for {num_steps} steps", flush=True)
    try:
        play_headless(env, config, script or lively_script(env, config.seed))
    finally:
        env.close()


def main() -> None:
    try:
        play(tyro.cli(PlayConfig, prog="python -m inferix_env.play", config=(tyro.conf.FlagCreatePairsOff,)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as shells name an end by Ctrl-C


if __name__ == "__main__":
    main()
