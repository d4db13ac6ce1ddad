"""Session: a person plays a world in a window.

The window stays alive however slow the model is: steps run in a thread, one at a time. Knows the env, its window by
plain names of keys, and files; knows nothing of pygame or of how a step is made.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import TextActions
from inferix_env.env import WorldSimEnv
from inferix_env.episode import Episode
from inferix_env.keys import Keys, commands_of, free_commands, mouse_part, rows_of_help, shown_caps
from inferix_env.outputs import free_name, open_recorder, save_picture, world_name
from inferix_env.play_config import PlayConfig
from inferix_env.played import Played
from inferix_env.record import Recorder
from inferix_env.typing_line import MouseLook, PromptLine, turned

if TYPE_CHECKING:
    from inferix_env.hud import Hud
    from inferix_env.viewer import Event, Window

TICK = 1 / 60  # seconds between two looks at the events
RESTART_AFTER = 2.0  # seconds from an end to the next episode
NOTE_FOR = 2.5  # seconds a note stands


class Session:
    """Interactive play: keys come in through `handle`, `tick` starts steps when they are due and draws.

    Neither waits for the model. Steps and resets run in one thread, one at a time.

    Args:
        env: a world's env; whoever made it closes it, after the session.
        window: with a strip; the session closes it.
        config: seed, out, steps, scale and record count.
        script: actions to take, over and over, while no key is held.
    """

    def __init__(self, env: WorldSimEnv, window: Window, config: PlayConfig, script: list | None = None):
        self.env, self.window, self.config = env, window, config
        self.script = itertools.cycle(script) if script else None
        self.keys = Keys(env.get_keys_to_action())
        self.cap_names = {code: window.key_name(code) for code in self.keys.codes}
        actions = env.world_spec.actions
        self.commands = free_commands(set(self.cap_names.values()), commands_of(actions))
        self.help_rows = rows_of_help(self.keys.keymap, self.cap_names, actions, self.commands)
        self.caps = shown_caps(self.keys.keymap)
        self.line = PromptLine(actions.longest) if isinstance(actions, TextActions) else None
        self.look = MouseLook() if mouse_part(actions) else None
        window.listen(False)
        self.worker = ThreadPoolExecutor(1, "steps")
        self.pending: Future | None = None
        self.finish: Callable[[Any], None] = self._begin
        self.episode = Episode(config.seed)
        self.wants_reset, self.singles, self.num_steps, self.num_episodes = True, 0, 0, 0
        self.paused, self.helping, self.done = False, False, False
        self.frames: deque[np.ndarray] = deque()
        self.frame = np.zeros((*env.world_spec.frame, 3), np.uint8)
        self.rate = env.world_spec.fps / env.frames_per_step  # steps a second, as the world has them
        self.due = self.frame_due = self.over_at = 0.0
        self.finished: deque[float] = deque(maxlen=16)
        self.recorder: Recorder | None = None
        self.played = Played(env, config, "person")
        self.note, self.note_until = "F1 help", time.perf_counter() + 2 * NOTE_FOR
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
        elif self.line is not None and self.line.text is not None:
            if not self.line.handle(event):
                self.window.listen(False)
        elif event.kind == "motion":
            if self.look is not None and not self.paused:
                self.look.add(*event.moved)
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

    # The commands, by their names in keys.COMMANDS.

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

    def prompt(self) -> None:
        """Open the line in which a prompt is typed."""
        if self.line is not None:
            self.line.open()
            self.window.listen(True)

    def screenshot(self) -> None:
        try:
            self._tell(f"saved {save_picture(self._new_file('.png'), self.frame, self.config.scale)}")
        except OSError as error:
            self._tell(f"not saved: {error}")

    def record(self) -> None:
        """Start a recording, or end the one that runs."""
        if self.recorder is not None:
            self._end_recording()
            return
        try:
            self.recorder = open_recorder(self.env, self._new_file(".mp4"), self.config.scale)
        except (ValueError, OSError) as error:
            self._tell(f"not recording: {error}")

    def close(self) -> None:
        """End a recording, close the window, and wait for the step in flight. Closing twice is fine."""
        self._end_recording()
        self._end_log()
        self.window.close()
        self.worker.shutdown()

    def _start(self) -> None:
        """Start a reset or a step in the thread, if one is wanted now."""
        now = time.perf_counter()
        if self.wants_reset or (self.episode.over and now - self.over_at >= RESTART_AFTER and not self.paused):
            self.wants_reset, self.singles = False, 0
            self._submit(self._begin, partial(self.env.reset, seed=self.config.seed + self.num_episodes))
        elif self.singles and not self.episode.over:
            self.singles -= 1
            self._submit_step()
        elif not (self.paused or self.episode.over) and now >= self.due:
            self.due = max(self.due + 1 / self.rate, now)
            self._submit_step()

    def _submit_step(self) -> None:
        action = self._action()
        self._submit(partial(self._advance, action), self.env.step, action)

    def _submit(self, finish: Callable[[Any], None], work: Callable[..., Any], *arguments: Any) -> None:
        self.finish, self.pending = finish, self.worker.submit(work, *arguments)

    def _action(self) -> Any:
        """What is typed, held or moved; else the script's next."""
        if self.line is not None and self.line.sent:
            return self.line.take()
        if self.script is not None and not self.keys.any() and not (self.look and self.look.any()):
            return next(self.script)
        action = self.keys.take()
        return action if self.look is None else turned(action, self.look)

    def _begin(self, opened: tuple[np.ndarray, dict[str, Any]]) -> None:
        """An episode has begun."""
        _, info = opened
        self._end_log()
        self.played.begin(self.config.seed + self.num_episodes, info["frames"])
        self.episode = Episode(self.config.seed + self.num_episodes, variables=info["variables"])
        self.episode.prompt, self.episode.may_end = info.get("prompt", ""), not self.env.world_spec.published
        self.num_episodes += 1
        self.keys.tapped.clear()
        # A world folder's first frames are all the same; a published world may have dreamed a block.
        self.frames = deque(info["frames"] if self.env.world_spec.published else info["frames"][-1:])
        self.frame_due = 0.0
        self.finished.clear()
        self.due = time.perf_counter()

    def _advance(self, action: Any, outcome: tuple[Any, float, bool, bool, dict[str, Any]]) -> None:
        """A step has come."""
        self.episode.add(outcome)
        self.played.add(action, outcome)
        frames = outcome[4]["frames"]
        self.frames.extend(frames)
        self.over_at = time.perf_counter()
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
        if self.recorder is None:
            return
        recorder, self.recorder = self.recorder, None
        try:
            path = recorder.close()
            self._tell(f"saved {path}" if path else "nothing recorded: no step was taken")
        except OSError as error:
            self._tell(f"recording lost: {error}")

    def _end_log(self) -> None:
        try:
            path = self.played.end()
            if path:
                self._tell(f"saved {path}")
        except OSError as error:
            self._tell(f"log lost: {error}")

    def _new_file(self, suffix: str) -> Path:
        return free_name(self.config.out, f"{world_name(self.env)}-{self.episode.seed}", suffix)

    def _tell(self, note: str) -> None:
        """Show a line in the window and on the command line."""
        print(note, flush=True)
        self.note, self.note_until = note, time.perf_counter() + NOTE_FOR

    def _rest(self) -> None:
        """Sleep until something may have happened."""
        left = (min(self.due, self.frame_due) if self.frames else self.due) - time.perf_counter()
        if self.pending is not None:
            concurrent.futures.wait([self.pending], TICK)
        else:  # a time that has passed starts nothing: it is paused, or the episode has ended
            time.sleep(min(TICK, left) if left > 0 else TICK)

    def _draw(self) -> None:
        """Draw, if anything has changed. Frames of a block come at the world's pace, its first one at once."""
        now = time.perf_counter()
        if self.frames and (now >= self.frame_due or len(self.frames) >= self.env.frames_per_step):
            self.frame = self.frames.popleft()
            # Counted from when it was due, so that looking at the clock in ticks does not slow the world down.
            period = 1 / self.env.world_spec.fps
            self.frame_due = max(self.frame_due, now - period) + period
        hud = self._hud(now)
        if self.drawn is None or self.frame is not self.drawn[0] or hud != self.drawn[1]:
            self.window.show(self.frame, hud)
            self.drawn = self.frame, hud

    def _hud(self, now: float) -> Hud:
        return {
            "numbers": self._numbers(),
            "keys": [(self.cap_names[same[0]], any(code in self.keys.held for code in same)) for same in self.caps],
            "recording": f"REC {self.recorder.num_frames / self.env.world_spec.fps:.0f} s" if self.recorder else "",
            "paused": self.paused,
            "banner": self._banner(),
            "note": self.note if now < self.note_until else "",
            "help": self.help_rows if self.helping else [],
            "prompt": self.episode.prompt,
            "typing": None if self.line is None else self.line.text,
        }

    def _numbers(self) -> list[tuple[str, str]]:
        """(label, value) of the pace, and of what is known of the episode."""
        return [(f"steps/s of {self.rate:.3g}", self._measured_rate()), *self.episode.numbers()]

    def _measured_rate(self) -> str:
        """Steps a second that come, while it runs."""
        if self.paused or len(self.finished) < 2:
            return "-"
        return f"{(len(self.finished) - 1) / (self.finished[-1] - self.finished[0]):.1f}"

    def _banner(self) -> tuple[str, str]:
        episode = self.episode
        if episode.over:
            return f"{episode.over} - R to reset", f"return {episode.total:z.1f} in {episode.steps} steps"
        return ("", "") if self.num_episodes else ("opening", world_name(self.env))
