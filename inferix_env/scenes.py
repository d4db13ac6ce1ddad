"""From reset's options to where a published world begins: a prompt, a picture, or both.

Which of them a world takes is told by its actions; what the engine makes of them is kept at the env's seats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import Start, TextActions, check_start, picture_of, scene
from inferix_env.engines import Seats
from inferix_env.openings import Opening

OPTIONS = ("prompt", "image", "frames", "seed")
# Where a text world begins of which nothing was asked.
PROMPT = (
    "A quiet path through a sunlit forest, seen at eye level. The camera moves slowly forward between tall trees; "
    "leaves stir in a light wind, sunbeams cross the path, colours are natural and the picture is sharp."
)


class Scenes:
    """Where the episodes of a published world begin.

    Args:
        prompt, image: for resets that bring none.

    Raises:
        ValueError: one is none of what this world takes.
    """

    def __init__(self, seats: Seats, prompt: str | None, image: Any):
        self.seats, self.sim, self.spec = seats, seats.engine, seats.engine.spec
        self.reads_text = isinstance(self.spec.actions, TextActions)
        self.defaults = {"prompt": prompt, "image": image}
        self._check(self.defaults)

    def opening(self, options: Mapping[str, Any], rng: np.random.Generator) -> Opening:
        """Where an episode begins.

        Args:
            options: {"prompt": text} of a text world; {"image": picture}, a path, a PIL picture or uint8 [H, W, 3]:
                what a Matrix-Game begins with, and a text world may whose first block is one latent frame, or that has
                several blocks in flight (MAGI-1); {"frames": uint8 [T, H, W, 3]}, a video that it goes on with.

        Raises:
            ValueError: unknown options, or values that do not fit the world.
        """
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ValueError(f"reset options {unknown}: expected some of {list(OPTIONS)}, or 'snapshot'")
        self._check(options)
        image = self.defaults["image"] if options.get("image") is None else options["image"]
        if self.reads_text:
            prompt = options.get("prompt") or self.defaults["prompt"] or PROMPT
            if options.get("frames") is not None:
                return self._of_frames(prompt, np.asarray(options["frames"]))
            return self._of_prompt(prompt, image)
        if image is None:
            raise ValueError(
                "this world begins from a picture: give reset options {'image': path or array}, or the env image="
            )
        return self._of_picture(image)

    def _of_prompt(self, prompt: str, image: Any) -> Opening:
        context = self.seats.prompt(prompt)
        if image is None:
            return Opening(Start.of(context), None, prompt)
        of_picture = self.seats.recall((prompt, *key_of(image)), lambda: self._scene(image, prompt))
        return Opening(Start.of(context, of_picture.start.latents), copied(of_picture).frames, prompt)

    def _of_frames(self, prompt: str, frames: np.ndarray) -> Opening:
        start = replace(Start.of(self.seats.prompt(prompt)), frames=frames)
        check_start(start, self.spec)
        return Opening(start, frames.copy(), prompt)

    def _of_picture(self, image: Any) -> Opening:
        return copied(self.seats.recall(key_of(image), lambda: self._scene(image, None)))

    def _scene(self, image: Any, prompt: str | None) -> Opening:
        """The picture as the world sees it, and what begins there."""
        seen = ((picture_of(self.sim, image) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return Opening(scene(self.sim, prompt, seen), seen[None], prompt)

    def _check(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError for a prompt or a picture that this world does not take."""
        prompt, image = options.get("prompt"), options.get("image")
        if options.get("frames") is not None and (not self.reads_text or image is not None):
            raise ValueError("frames: a video goes with a text world's prompt, and without an image")
        if prompt is not None:
            if not self.reads_text:
                raise ValueError(f"prompt {prompt!r}: this world is steered by keys, from a picture; give image")
            self.spec.actions.encode(prompt)
        if image is not None and self.reads_text and self.spec.block_at(0) != 1 and not self.spec.staggered:
            raise ValueError(
                f"image: this world begins with {self.spec.block_at(0)} latent frames at once, from a prompt alone; "
                "a preset such as 'self-forcing-i2v' begins from a picture"
            )
        if image is not None and not isinstance(image, str | Path | np.ndarray | Image.Image):
            raise ValueError(f"image {image!r}: expected a path, a PIL picture or an array uint8 [H, W, 3]")


def copied(opening: Opening) -> Opening:
    """The same with frames of its own, which whoever sees them may write to."""
    return replace(opening, frames=None if opening.frames is None else opening.frames.copy())


def key_of(image: Any) -> tuple:
    """Tells a picture from others: a file by its path and time, an array or a PIL picture by its contents."""
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        return (str(path.resolve()), path.stat().st_mtime_ns if path.is_file() else 0)
    pixels = np.ascontiguousarray(image)
    return (hashlib.sha256(pixels.data).hexdigest(), pixels.shape, str(pixels.dtype), getattr(image, "mode", ""))
