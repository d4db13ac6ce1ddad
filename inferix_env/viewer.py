"""A pygame window that shows frames crisply, with numbers, key caps and panels around them for play.

All of pygame stands here: who uses a window gets its events by plain names. Knows frames, texts and keys; knows no
env and no model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# SDL would turn SIGTERM into an event that nobody reads, and the process could not be ended.
os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")

import pygame

LARGEST = (960, 720)  # pixels of a picture, where the screen has them
STRIP = 76  # height of the strip of numbers below the picture
SMALLEST = (640, 320)  # the picture's room in a window with a strip, whose texts need it
NAP = 0.01  # seconds between two looks at the events while waiting

Colour = tuple[int, int, int]
Row = list[tuple[pygame.Surface, pygame.Surface]]  # (value, label)
BLACK, DARK, EDGE = (0, 0, 0), (17, 19, 23), (44, 48, 56)
DIM, TEXT, LIT, RED = (128, 136, 148), (236, 239, 244), (255, 182, 66), (240, 68, 56)
CAP, CAP_EDGE = (36, 40, 48), (70, 77, 89)
VEIL = (10, 11, 14, 205)  # the translucent ground of what stands on the picture

ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Event:
    """What happened to a window: kind "press" or "release" of a key, "leave" (it lost the keyboard), "expose" (it has
    to be drawn again) or "close". `code` is pygame's code of the key, `name` its name: "left", "a", "f1"."""

    kind: str
    code: int = 0
    name: str = ""


class Hud(TypedDict):
    """What stands around a frame; a plain dict, so that one can be made without pygame. Empty things are not drawn.

    Keys:
        numbers: (label, value) of the strip, left to right.
        keys: (name, whether it is held) of the key caps.
        recording: the text beside the red mark.
        paused: whether to say so.
        banner: a large and a small line in the middle.
        note: a line at the bottom of the picture.
        help: (names of keys, what they do); takes the place of banner and note.
    """

    numbers: list[tuple[str, str]]
    keys: list[tuple[str, bool]]
    recording: str
    paused: bool
    banner: tuple[str, str]
    note: str
    help: list[tuple[list[str], str]]


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
        surface.fill(BLACK)
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


class Painter:
    """Draws a Hud. Holds the fonts."""

    def __init__(self) -> None:
        self.fonts: dict[int, pygame.font.Font] = {}

    def draw(self, surface: pygame.Surface, picture: pygame.Rect, strip: pygame.Rect, hud: Hud) -> None:
        """Draw all of a Hud: on the picture, and in the strip below it."""
        if strip.height:
            self.draw_strip(surface, strip, hud)
        if hud["paused"]:
            self.draw_badge(surface, picture, "PAUSED", LIT, right=False)
        if hud["recording"]:
            self.draw_badge(surface, picture, hud["recording"], RED, right=True)
        if hud["help"]:
            self.draw_help(surface, picture, hud["help"])
            return
        if hud["note"]:
            self.draw_note(surface, picture, hud["note"])
        if any(hud["banner"]):
            self.draw_banner(surface, picture, *hud["banner"])

    def text(self, text: str, size: int, colour: Colour) -> pygame.Surface:
        """A line of text in pygame's own font, drawn large and made small: else its letters stand unevenly."""
        if size not in self.fonts:
            self.fonts[size] = pygame.font.Font(None, 4 * size)
        return pygame.transform.smoothscale_by(self.fonts[size].render(text, True, colour), 0.25)

    def draw_strip(self, surface: pygame.Surface, strip: pygame.Rect, hud: Hud) -> None:
        """Numbers from the left, key caps from the right."""
        surface.fill(DARK, strip)
        surface.fill(EDGE, (strip.left, strip.top, strip.width, 1))
        caps = self.caps([name for name, _ in hud["keys"]], 40)
        x = strip.right - 18 - (caps[-1].right if caps else 0)
        for cap, (name, held) in zip(caps, hud["keys"], strict=True):
            self.draw_cap(surface, cap.move(x, strip.centery - 20), name, held)
        room = pygame.Rect(strip.left + 20, strip.top, x - strip.left - 32, strip.height)
        rows = self.number_rows(hud["numbers"], room.width)
        for i, row in enumerate(rows):
            self.draw_numbers(surface, row, room, room.top + room.height * (2 * i + 1) // (2 * len(rows)))

    def number_rows(self, numbers: Sequence[tuple[str, str]], width: int) -> list[Row]:
        """The numbers as pictures of (value, label): one row if it fits into the width, else two smaller ones."""
        middle = (len(numbers) + 1) // 2
        one = [self.number_row(numbers, 34, 18)]
        if ends(one[0])[-1] <= width:
            return one
        return [self.number_row(part, 24, 15) for part in (numbers[:middle], numbers[middle:])]

    def number_row(self, numbers: Sequence[tuple[str, str]], value_size: int, label_size: int) -> Row:
        return [(self.text(value, value_size, TEXT), self.text(label, label_size, DIM)) for label, value in numbers]

    def draw_numbers(self, surface: pygame.Surface, row: Row, room: pygame.Rect, y: int) -> None:
        """A row of values with their labels below, centred on line y; what does not fit is cut off."""
        surface.set_clip(room)
        for (value, label), x in zip(row, [0, *ends(row)], strict=False):
            height = value.get_height() + label.get_height()
            surface.blit(value, (room.left + x, y - height // 2))
            surface.blit(label, (room.left + x, y - height // 2 + value.get_height()))
        surface.set_clip(None)

    def caps(self, names: Sequence[str], side: int) -> list[pygame.Rect]:
        """Where caps for these keys stand in a row that begins at (0, 0)."""
        rects: list[pygame.Rect] = []
        for name in names:
            wide = 0 if name in ARROWS else self.text(key_label(name), side // 2 + 4, TEXT).get_width() + side // 2
            rects.append(pygame.Rect(rects[-1].right + side // 6 if rects else 0, 0, max(side, wide), side))
        return rects

    def draw_cap(self, surface: pygame.Surface, rect: pygame.Rect, name: str, held: bool) -> None:
        """A key cap: raised, or lit and down while it is held."""
        ground, edge, ink = (LIT, LIT, DARK) if held else (CAP, CAP_EDGE, TEXT)
        radius = rect.height // 5
        top = rect.move(0, 2) if held else rect
        if not held:
            pygame.draw.rect(surface, EDGE, rect.move(0, 3), border_radius=radius)
        pygame.draw.rect(surface, ground, top, border_radius=radius)
        pygame.draw.rect(surface, edge, top, 1, border_radius=radius)
        if name in ARROWS:
            draw_arrow(surface, top, ARROWS[name], ink)
        else:
            label = self.text(key_label(name), rect.height // 2 + 4, ink)
            surface.blit(label, label.get_rect(center=(top.centerx, top.centery + rect.height // 16)))

    def draw_badge(self, surface: pygame.Surface, picture: pygame.Rect, text: str, colour: Colour, right: bool) -> None:
        """A small mark in an upper corner of the picture: a dot and a text, in the right one or the left."""
        label = self.text(text, 24, TEXT)
        panel = pygame.Rect(picture.left + 14, picture.top + 14, label.get_width() + 46, 34)
        if right:
            panel.right = picture.right - 14
        draw_veil(surface, panel, 17)
        pygame.draw.circle(surface, colour, (panel.left + 20, panel.centery), 7)
        surface.blit(label, label.get_rect(midleft=(panel.left + 34, panel.centery + 1)))

    def draw_banner(self, surface: pygame.Surface, picture: pygame.Rect, large: str, small: str) -> None:
        """A large and a small line in the middle of the picture."""
        lines = [self.text(large, 46, TEXT), self.text(small, 26, DIM)]
        panel = pygame.Rect(0, 0, max(line.get_width() for line in lines) + 72, 118)
        panel.center = picture.center
        draw_veil(surface, panel, 14)
        for line, y in zip(lines, (-18, 26), strict=True):
            surface.blit(line, line.get_rect(center=(panel.centerx, panel.centery + y)))

    def draw_note(self, surface: pygame.Surface, picture: pygame.Rect, note: str) -> None:
        """A line at the bottom of the picture."""
        label = self.text(note, 22, TEXT)
        panel = label.get_rect().inflate(28, 16)
        panel.midbottom = (picture.centerx, picture.bottom - 14)
        draw_veil(surface, panel, 10)
        surface.blit(label, label.get_rect(center=panel.center))

    def draw_help(self, surface: pygame.Surface, picture: pygame.Rect, rows: list[tuple[list[str], str]]) -> None:
        """Key caps and what they do, a row each; closer together where the picture is low."""
        pitch = max(16, min(40, (picture.height - 42) // len(rows)))
        rows_of_caps = [self.caps(names, pitch * 7 // 10) for names, _ in rows]
        texts = [self.text(text, pitch * 6 // 10, TEXT) for _, text in rows]
        left = max(caps[-1].right for caps in rows_of_caps) + 22
        panel = pygame.Rect(0, 0, left + max(t.get_width() for t in texts) + 64, pitch * len(rows) + 40)
        panel.center = picture.center
        draw_veil(surface, panel, 14)
        for i, (caps, text, (names, _)) in enumerate(zip(rows_of_caps, texts, rows, strict=True)):
            y = panel.top + 20 + pitch * i
            for cap, name in zip(caps, names, strict=True):
                self.draw_cap(surface, cap.move(panel.left + 32, y + pitch * 15 // 100), name, held=False)
            surface.blit(text, text.get_rect(midleft=(panel.left + 32 + left, y + pitch // 2 + 1)))


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


def key_label(name: str) -> str:
    """What stands on a key's cap."""
    return {"escape": "Esc", "space": "Space"}.get(name, name.upper() if len(name) < 4 else name.capitalize())


def translated(event: pygame.Event) -> list[Event]:
    """A pygame event by its plain name; none for what nobody needs."""
    if event.type in (pygame.KEYDOWN, pygame.KEYUP):
        return [Event("press" if event.type == pygame.KEYDOWN else "release", event.key, pygame.key.name(event.key))]
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


def draw_veil(surface: pygame.Surface, panel: pygame.Rect, radius: int) -> None:
    """A translucent ground with round corners."""
    veil = pygame.Surface(panel.size, pygame.SRCALPHA)
    pygame.draw.rect(veil, VEIL, veil.get_rect(), border_radius=radius)
    surface.blit(veil, panel)


def draw_arrow(surface: pygame.Surface, rect: pygame.Rect, towards: tuple[int, int], ink: Colour) -> None:
    """A triangle in the middle of a cap."""
    reach = rect.height * 0.2
    dx, dy = towards[0] * reach, towards[1] * reach
    x, y = rect.center
    points = [(x + dx, y + dy), (x - dx + dy, y - dy + dx), (x - dx - dy, y - dy - dx)]
    pygame.draw.polygon(surface, ink, points)
    pygame.draw.aalines(surface, ink, True, points)


def ends(row: Row) -> list[int]:
    """Where each column of a row of numbers ends, the gap after it included."""
    columns, x = [], 0
    for value, label in row:
        wide = max(value.get_width(), label.get_width()) + 26
        x += wide + -wide % 22  # in steps, so that a digit more does not move the columns after it
        columns.append(x)
    return columns or [0]
