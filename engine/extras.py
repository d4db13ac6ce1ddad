"""Extras: what goes with a published denoiser, and the folders in which it is looked for. Reads no weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class Extras:
    """What goes with a published denoiser, and how.

    Attributes:
        base: a folder with the VAE and the encoders, if they are not beside the denoiser.
        lora: a low-rank adapter to merge; by default, for LongLive's presets, the one published beside the denoiser.
            "none" takes the weights as they are, such as those of a file that it was merged into.
        lora_alpha: the adapter's; its rank by default, which makes its scale 1.
        codec: "vae", "tiny" (TAEHV, 25 times cheaper, softer), or "preview" (no weights: three latent channels).
        size: (H, W) in pixels, multiples of 16; the preset's by default.
        numerics: "published" rounds where the published code does; "fast" differs by rounding only.
        prefer: which weights of a checkpoint that has several, such as "generator" for "generator_ema".
        text_device: where the text encoder runs; "" drops it from memory after every prompt.
        text_cache: a folder that keeps prompts' embeddings.
        clean_prompts: lower-case prompts and take out what the published code does, which leaves little of any that is
            not English; False leaves them as they are (MAGI-1).
        tokens: special tokens before the prompt, of "hq", "static", "dynamic", "borders", "3d", "anime", "duration"
            (MAGI-1).
    """

    base: str | Path | None = None
    lora: str | Path | None = None
    lora_alpha: float | None = None
    codec: str = "vae"
    size: tuple[int, int] | None = None
    numerics: str = "published"
    prefer: str | None = None
    text_device: str = "cpu"
    text_cache: str | Path | None = None
    clean_prompts: bool = True
    tokens: tuple[str, ...] = ("hq", "duration")
    folders: tuple[Path, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, known in (("codec", ("vae", "tiny", "preview")), ("numerics", ("published", "fast"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {list(known)}")

    def find(self, names: Sequence[str]) -> Path | None:
        """The first of some files that is there."""
        return next((f / n for f in self.folders for n in names if (f / n).is_file()), None)


def extras_of(given: Mapping[str, object]) -> Extras:
    """Raises ValueError on a name that is none of `Extras`."""
    known = [f.name for f in fields(Extras) if f.repr]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"argument {name!r}: expected one of {', '.join(known)}.{hint}")
    return Extras(**given)  # type: ignore[arg-type]


def places(folder: Path, base: str | Path | None, bases: Sequence[str]) -> tuple[Path, ...]:
    """Folders in which the parts of a checkpoint may lie, the user's own first.

    Args:
        bases: where, seen from the weights' folder.
    """
    if base is not None and not Path(base).is_dir():
        raise ValueError(f"base {str(base)!r}: there is no such folder")
    own = [Path(base)] if base is not None else []
    beside = [(folder / b).resolve() for b in bases]
    return tuple(dict.fromkeys([*own, *(b for b in beside if b.is_dir() and b.name)]))
