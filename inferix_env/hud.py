"""What stands around a frame in a window: numbers, key caps, marks and panels, drawn with pygame.

Knows texts and names of keys; knows no frame, no window and no events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import pygame

Colour = tuple[int, int, int]
Row = list[tuple[pygame.Surface, pygame.Surface]]  # (value, label)
DARK, EDGE = (17, 19, 23), (44, 48, 56)
DIM, TEXT, LIT, RED = (128, 136, 148), (236, 239, 244), (255, 182, 66), (240, 68, 56)
CAP, CAP_EDGE = (36, 40, 48), (70, 77, 89)
NUMBERS = 420  # pixels for numbers where a prompt stands beside them
VEIL = (10, 11, 14, 205)  # the translucent ground of what stands on the picture

ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


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
        prompt: the one that holds, beside the numbers.
        typing: a prompt that is being typed, at the bottom of the picture; None for none.
    """

    numbers: list[tuple[str, str]]
    keys: list[tuple[str, bool]]
    recording: str
    paused: bool
    banner: tuple[str, str]
    note: str
    help: list[tuple[list[str], str]]
    prompt: str
    typing: str | None


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
        if hud["typing"] is not None:
            self.draw_typing(surface, picture, hud["typing"])
        elif hud["note"]:
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
        if hud["prompt"]:
            room.width = min(room.width // 2, NUMBERS)
            self.draw_prompt(surface, pygame.Rect(room.right + 12, strip.top, x - room.right - 12, strip.height), hud)
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

    def draw_prompt(self, surface: pygame.Surface, room: pygame.Rect, hud: Hud) -> None:
        """The prompt that holds, in three lines at most, and what it is."""
        lines = self.wrapped(hud["prompt"], 19, room.width)
        if len(lines) > 3:
            lines = [*lines[:2], self.cut(lines[2] + "...", 19, room.width)]
        rows = [*(self.text(line, 19, TEXT) for line in lines), self.text("prompt", 15, DIM)]
        y = room.centery - sum(row.get_height() for row in rows) // 2
        for row in rows:
            surface.blit(row, (room.left, y))
            y += row.get_height()

    def draw_typing(self, surface: pygame.Surface, picture: pygame.Rect, text: str) -> None:
        """What is typed so far, its last lines, at the bottom of the picture."""
        width = picture.width - 60
        lines = self.wrapped(text + "|", 24, width)[-4:]
        rows = [self.text("prompt: Enter sends it, Esc leaves it", 16, DIM)]
        rows += [self.text(line, 24, TEXT) for line in lines]
        panel = pygame.Rect(0, 0, picture.width - 28, sum(row.get_height() for row in rows) + 20)
        panel.midbottom = (picture.centerx, picture.bottom - 14)
        draw_veil(surface, panel, 10)
        y = panel.top + 10
        for row in rows:
            surface.blit(row, (panel.left + 16, y))
            y += row.get_height()

    def wrapped(self, text: str, size: int, width: int) -> list[str]:
        """The lines of a text that fit into a width; words longer than that are cut apart."""
        lines = [""]
        for word in text.split(" "):
            line = f"{lines[-1]} {word}" if lines[-1] else word
            if self.width(line, size) <= width or not lines[-1]:
                lines[-1] = line
            else:
                lines.append(word)
            while self.width(lines[-1], size) > width and len(lines[-1]) > 1:
                fits = self.cut(lines[-1], size, width, "")
                lines[-1:] = [fits, lines[-1][len(fits) :]]
        return lines

    def cut(self, text: str, size: int, width: int, end: str = "...") -> str:
        """As much of a text as fits, and what stands for the rest; one character at least."""
        while self.width(text, size) > width and len(text) > len(end) + 1:
            text = text[: -len(end) - 1] + end
        return text

    def width(self, text: str, size: int) -> int:
        """How wide a line of text is drawn."""
        self.text("", size, TEXT)
        return self.fonts[size].size(text)[0] // 4

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


def key_label(name: str) -> str:
    """What stands on a key's cap."""
    return {"escape": "Esc", "space": "Space"}.get(name, name.upper() if len(name) < 4 else name.capitalize())


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
