"""MagiConditioner: prompts as MAGI-1 reads them, its special tokens before them. Makes the encoder when first asked.

Shapes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from engine.conditioners.cached_text import EncodesText
from engine.conditioners.conditioner import Conditioner
from engine.conditioners.magi_text import MagiText, filled


class MagiConditioner(Conditioner):
    """Prompts -> [T, D] (see Conditioner).

    Args:
        text: the model's special tokens and its text of no prompt.
    """

    def __init__(
        self,
        text: MagiText,
        make_text: Callable[[], EncodesText],
        cache: str | Path | None = None,
        identity: str = "text",
        keep: bool = True,
    ):
        super().__init__(make_text, None, cache, identity, len(text.null), keep)
        self.assembly, self.endings = text, text.endings

    def prompt(self, prompt: str, left: int | None = None) -> Tensor:
        """What a block reads of a prompt; of an empty one, what the model learned for none.

        Args:
            left: blocks to come, this one among them; None where the video has no end.
        """
        if not prompt.strip():
            return self.assembly.nothing()
        return self.assembly.prompt(filled(super().prompt(prompt)), left)
