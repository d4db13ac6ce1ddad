"""A pygame window that shows frames crisply, and tells what happens to it.

pygame stays here and in hud.py: who uses a window gets its events by plain names. Knows frames and events; knows no
env and no model.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# SDL would turn SIGTERM into an event that nobody reads, and the process could not be ended.
os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")

import pygame

from inferix_env.hud import Hud, Painter

LARGEST = (960, 720)  # pixels of a picture, where the screen has them
STRIP = 76  # height of the strip of numbers below the picture
SMALLEST = (640, 320)  # the picture's room in a window with a strip, whose texts need it
REPEAT = (400, 40)  # milliseconds until a held key repeats while text is typed, and between repeats
NAP = 0.01  # seconds between two looks at the events while waiting


@dataclass(frozen=True)
class Event:
    """What happened to a window: kind "press" or "release" of a key, "text" (typed, while `Window.listen` is on),
    "motion" of the mouse, "leave" (it lost the keyboard), "expose" (it has to be drawn again) or "close".

    `code` is pygame's code of the key, `name` its name: "left", "a", "f1", or the text. `moved` is how many pixels the
    mouse went right and down.
    """

    kind: str
    code: int = 0
    name: str = ""
    moved: tuple[float, float] = (0, 0)


class Window:
    """A window for frames of one size.

    Args:
        size: (W, H) of the frames in pixels.
        title: of the window.
        fps: frames a second that `play` shows.
        scale: how many screen pixels wide a pixel is at first; by default what looks good on this screen. The picture
            grows and shrinks with the window.
        strip: whether there is a strip for a Hud's numbers and keys below the picture.

    Raises:
        ValueError: scale is below 1, or no window can be opened here.
    """

    def __init__(self, size: tuple[int, int], title: str, fps: float, scale: int | None = None, strip: bool = False):
        if scale is not None and scale < 1:
            raise ValueError(f"scale {scale}: expected 1 or more")
        start_display()
        self.size, self.period, self.due = size, 1 / fps, 0.0
        self.strip = STRIP if strip else 0
        scale = scale or best_scale(size, pygame.display.get_desktop_sizes()[0], self.strip)
        least = SMALLEST if strip else (1, 1)
        room = (max(size[0] * scale, least[0]), max(size[1] * scale, least[1]) + self.strip)
        try:
            self.window: pygame.Window | None = pygame.Window(title, room, resizable=True)
        except pygame.error as error:
            raise ValueError(f"no window can be opened: {error}") from None
        self.painter = Painter()
        self.has_icon = False

    @property
    def closed(self) -> bool:
        """Whether there is no window any more: closed, or gone because someone in this process shut pygame down."""
        if self.window is None:
            return True
        try:
            return self.window.id == 0  # SDL counts them from 1
        except pygame.error:  # how pygame tells that a window is gone
            return True

    def play(self, frames: np.ndarray) -> None:
        """Show each of some frames, uint8 [T, H, W, 3], at the window's pace.

        Sleeps only while they come faster than they are to be shown. Once the user has closed the window, it does
        nothing and returns at once.
        """
        self.due = max(self.due, time.perf_counter() - len(frames) * self.period)
        for frame in frames:
            self._wait()
            self.show(frame)
            self.due += self.period

    def show(self, frame: np.ndarray, hud: Hud | None = None) -> None:
        """Draw one frame, uint8 [H, W, 3], and what stands around it, now."""
        if self.window is None or self.closed:
            return
        surface = self.window.get_surface()
        picture, strip = layout(surface.get_size(), self.size, self.strip)
        surface.fill("black")
        draw_frame(surface, frame, picture)
        if not self.has_icon:
            self.window.set_icon(picture_of(frame))
            self.has_icon = True
        if hud is not None:
            self.painter.draw(surface, picture, strip, hud)
        self.window.flip()

    def events(self) -> list[Event]:
        """What happened since the last call. Takes every event of the process."""
        if self.closed:
            return [Event("close")]
        return [event for raw in pygame.event.get() for event in translated(raw)]

    def listen(self, on: bool) -> None:
        """Make events of typed text, and repeat keys that are held; or end that."""
        if on:
            pygame.key.start_text_input()
            pygame.key.set_repeat(*REPEAT)
        else:
            pygame.key.stop_text_input()
            pygame.key.set_repeat()

    def key_name(self, code: int) -> str:
        """pygame's name of a key's code: "left", "a", "space", "f1", "escape"."""
        return pygame.key.name(code)

    def close(self) -> None:
        """Close the window. Closing twice is fine."""
        if self.window is not None and not self.closed:
            self.window.destroy()
        self.window = None

    def _wait(self) -> None:
        """Wait until the next frame is due, and stay responsive."""
        self._answer()
        while (left := self.due - time.perf_counter()) > 0 and not self.closed:
            time.sleep(min(left, NAP))
            self._answer()

    def _answer(self) -> None:
        """Let the window live, and close it where the user did; all other events are left to whoever reads them."""
        if self.closed:
            return
        for event in pygame.event.get(pygame.WINDOWCLOSE):
            if event.window == self.window:
                self.close()
            elif event.window is not None:
                pygame.event.post(event)


def start_display() -> None:
    """Begin to use the screen and the fonts; more than once is fine.

    Raises:
        ValueError: SDL has no way to show anything here.
    """
    try:
        pygame.display.init()
        pygame.font.init()
    except pygame.error as error:
        raise ValueError(f"no window can be opened: {error}; use --headless, or another render_mode") from None


def is_seen() -> bool:
    """Whether a window would reach a screen. Where SDL finds none it draws into memory, and says nothing."""
    start_display()
    return bool(os.environ.get("SDL_VIDEODRIVER")) or pygame.display.get_driver() not in ("offscreen", "dummy")


def translated(event: pygame.Event) -> list[Event]:
    """A pygame event by its plain name; none for what nobody needs."""
    if event.type in (pygame.KEYDOWN, pygame.KEYUP):
        return [Event("press" if event.type == pygame.KEYDOWN else "release", event.key, pygame.key.name(event.key))]
    if event.type == pygame.TEXTINPUT:
        return [Event("text", name=event.text)]
    if event.type == pygame.MOUSEMOTION:
        moved = getattr(event, "rel", (0, 0))
        return [Event("motion", moved=moved)] if any(moved) else []
    kinds = {
        pygame.QUIT: "close",
        pygame.WINDOWCLOSE: "close",
        pygame.WINDOWFOCUSLOST: "leave",
        pygame.WINDOWEXPOSED: "expose",
        pygame.WINDOWSIZECHANGED: "expose",
    }
    return [Event(kinds[event.type])] if event.type in kinds else []


def best_scale(size: tuple[int, int], desktop: tuple[int, int], strip: int) -> int:
    """The largest whole factor at which a picture of `size` (W, H) is no larger than is good, and fits the desktop."""
    width = min(LARGEST[0], desktop[0] * 9 // 10)
    height = min(LARGEST[1], desktop[1] * 9 // 10 - strip)
    return max(1, min(width // size[0], height // size[1]))


def layout(window: tuple[int, int], size: tuple[int, int], strip: int) -> tuple[pygame.Rect, pygame.Rect]:
    """Where the picture and the strip stand: a pixel is a whole number of pixels wide, if there is room for one."""
    room = pygame.Rect(0, 0, window[0], max(1, window[1] - strip))
    factor = min(room.width / size[0], room.height / size[1])
    if factor >= 1:
        factor = int(factor)
    picture = pygame.Rect(0, 0, max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    picture.center = room.center
    return picture, pygame.Rect(0, room.bottom, window[0], strip)


def draw_frame(surface: pygame.Surface, frame: np.ndarray, picture: pygame.Rect) -> None:
    """A frame uint8 [H, W, 3], crisp; smoothed only where it has to be made smaller."""
    resize = pygame.transform.scale if picture.width >= frame.shape[1] else pygame.transform.smoothscale
    surface.blit(resize(picture_of(frame), picture.size), picture)


def picture_of(frame: np.ndarray) -> pygame.Surface:
    """A frame uint8 [H, W, 3] as pygame has it."""
    return pygame.image.frombuffer(np.ascontiguousarray(frame).tobytes(), frame.shape[1::-1], "RGB")
