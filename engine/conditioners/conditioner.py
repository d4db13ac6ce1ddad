"""Conditioner: a world's prompts and pictures as embeddings. Makes the encoders when they are first asked for.

Shapes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from engine.conditioners.cached_text import CachedText, EncodesText
from engine.conditioners.image import ClipVision

# Prompts whose embeddings stay in memory.
RECENT = 32


class Conditioner:
    """Prompts -> [T, D], pictures -> [T, D].

    Args:
        make_text, make_clip: make an encoder; None where the model reads no such thing.
        cache: a folder that keeps embeddings of prompts.
        identity: names the text encoder in that folder.
        keep: leave the text encoder in memory between prompts.
    """

    endings = 0  # last blocks of a video that read a text of their own

    def __init__(
        self,
        make_text: Callable[[], EncodesText] | None,
        make_clip: Callable[[], ClipVision] | None,
        cache: str | Path | None = None,
        identity: str = "text",
        text_tokens: int = 512,
        keep: bool = True,
    ):
        self.make_text, self.make_clip, self.keep = make_text, make_clip, keep
        self.reads_text, self.reads_images = make_text is not None, make_clip is not None
        self.text: EncodesText | None = None
        self.clip: ClipVision | None = None
        self.recent: dict[str, Tensor] = {}
        self.disk: CachedText | None = None
        if cache is not None and make_text is not None:
            self.disk = CachedText(make_text, cache, identity=identity, text_tokens=text_tokens)

    def prompt(self, prompt: str, left: int | None = None) -> Tensor:
        """Embeddings [T, D] of a prompt, in float32 on the CPU or as the encoder has them.

        Args:
            left: blocks to come; models with `endings` read how many.

        Raises:
            ValueError: the model reads no prompts, or the encoder or its tokenizer is missing.
        """
        if self.make_text is None:
            raise ValueError("this world reads no prompts: it is steered by keys, from a picture")
        if prompt not in self.recent:
            self.recent[prompt] = self._encoder().encode([prompt])[0]
            while len(self.recent) > RECENT:
                self.recent.pop(next(iter(self.recent)))
            self._drop()
        return self.recent[prompt]

    def picture(self, image: Tensor) -> Tensor:
        """CLIP tokens [T, D] of a picture [3, H, W] in [-1, 1]."""
        if self.make_clip is None:
            raise ValueError("this world reads no pictures")
        self.clip = self.clip or self.make_clip()
        return self.clip.encode(image[None])[0]

    def _encoder(self) -> EncodesText:
        if self.disk is not None:
            return self.disk
        assert self.make_text is not None
        self.text = self.text or self.make_text()
        return self.text

    def _drop(self) -> None:
        if not self.keep:
            self.text = None
            if self.disk is not None:
                self.disk.drop()
