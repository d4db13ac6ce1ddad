"""What MAGI-1 reads in place of a bare prompt: special tokens before the caption, and the text of no prompt.

Tokens say how a video should be (high quality, static, drawn) and how many chunks are to come. They are no words but
rows of a file that was published with the code; without that file prompts stand alone, as with all switches off. Knows
embeddings, not encoders or denoisers.

Legend: T tokens, D width.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Name -> array of the file, and row.
TOKENS = {
    "caption": ("caption_token", 0),
    "logo": ("logo_token", 0),
    "transition": ("other_tokens", 0),
    "hq": ("other_tokens", 1),
    "static": ("other_tokens", 2),
    "dynamic": ("other_tokens", 3),
    "borders": ("other_tokens", 4),
    "3d": ("other_tokens", 15),
    "anime": ("other_tokens", 16),
}
DURATION, LONGEST = 7, 8  # row of "one chunk to come", and how many there are of its kind
# In the order in which the published code puts them before a caption, so that the last one stands first.
SWITCHES = ("static", "dynamic", "borders", "hq", "3d", "anime", "duration")
SHIPPED = ("hq", "duration")
NEGATIVE = ("caption", "logo", "transition", "borders")
NULL_TOKENS = 50  # of the table of no prompt, those that are read


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """Rows float32 [1, D] by name, and for 1 to 8 chunks to come.

    Attributes:
        named: see TOKENS.
        durations: [8, D].
    """

    named: dict[str, Tensor]
    durations: Tensor

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray | Tensor]) -> SpecialTokens:
        """Of the published arrays caption_token [1, D], logo_token [1, D], other_tokens [100, D].

        Raises:
            ValueError: one is missing or of another shape.
        """
        wanted = {array: max(r for a, r in TOKENS.values() if a == array) + 1 for array, _ in TOKENS.values()}
        for name, rows in wanted.items():
            shape = tuple(arrays[name].shape) if name in arrays else None
            if shape is None or len(shape) != 2 or shape[0] < rows:
                raise ValueError(f"special tokens: {name} is {shape}, expected at least {rows} rows of [rows, D]")
        # Rounded through half precision, as published.
        tables = {name: torch.as_tensor(arrays[name]).half().float() for name in wanted}
        named = {name: tables[array][row : row + 1] for name, (array, row) in TOKENS.items()}
        return cls(named, tables["other_tokens"][DURATION : DURATION + LONGEST])

    @classmethod
    def load(cls, path: str | Path) -> SpecialTokens:
        """Of special_tokens.npz.

        Raises:
            ValueError: it cannot be read, or is another file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as special_tokens.npz of MAGI-1: {error}") from None
        return cls.of(arrays)

    def row(self, name: str, left: int | None = None) -> Tensor:
        """A token [1, D]; of "duration", the one for `left` chunks to come, this one among them; None: for ever."""
        if name != "duration":
            return self.named[name]
        count = LONGEST if left is None else min(max(left, 1), LONGEST)
        return self.durations[count - 1 : count]


@dataclass(frozen=True, eq=False)
class MagiText:
    """Texts of a model.

    Attributes:
        null: its learned table of no prompt, [text_tokens, D].
        tokens: the special ones; None where their file is not there.
        switches: which of them stand before every caption; any of SWITCHES.
        negative: put NEGATIVE before the text of no prompt.
    """

    null: Tensor
    tokens: SpecialTokens | None = None
    switches: Sequence[str] = SHIPPED
    negative: bool = False

    def __post_init__(self) -> None:
        odd = [name for name in self.switches if name not in SWITCHES]
        if odd:
            raise ValueError(f"special token {odd[0]!r}: expected any of {', '.join(SWITCHES)}")
        if self.negative and self.tokens is None:
            raise ValueError("negative tokens need the special tokens' file")
        if self.tokens is not None and self.tokens.durations.shape[1] != self.null.shape[1]:
            given, wanted = self.tokens.durations.shape[1], self.null.shape[1]
            raise ValueError(f"special tokens are {given} wide, this model's texts {wanted}: of another model?")

    def prompt(self, caption: Tensor, left: int | None = None) -> Tensor:
        """What a chunk reads of a caption [T, D], with special tokens before it: at most text_tokens rows.

        Args:
            caption: rows of its own tokens alone. None at all: what stands for no prompt.
            left: chunks to come, this one among them; None where the video has no end.
        """
        if not len(caption):
            return self.nothing()
        names = [name for name in SWITCHES if name in self.switches] if self.tokens is not None else []
        return self._before(caption, names, left)

    def nothing(self) -> Tensor:
        """What a chunk without a prompt reads, [50, D]."""
        return self._before(self.null, NEGATIVE if self.negative else (), None)[:NULL_TOKENS]

    def chunks(self, caption: Tensor, count: int) -> list[Tensor]:
        """What each chunk of a video of `count` reads."""
        return [self.prompt(caption, count - i) for i in range(count)]

    @property
    def endings(self) -> int:
        """How many last chunks of a video read a text of their own."""
        return LONGEST if self.tokens is not None and "duration" in self.switches else 0

    def _before(self, rows: Tensor, names: Sequence[str], left: int | None) -> Tensor:
        """Tokens, the last first, then rows, cut to text_tokens."""
        tokens = [self.tokens.row(name, left).to(rows) for name in reversed(names)] if self.tokens else []
        return torch.cat([*tokens, rows])[: len(self.null)]


def filled(rows: Tensor) -> Tensor:
    """Rows up to the last that is not zero: an encoder's embeddings [text_tokens, D] without their padding."""
    found = rows.ne(0).any(1).nonzero()
    return rows[: int(found.max()) + 1 if len(found) else 0]
