"""WorldOptions: which world, and how it is run, as the commands take it. Knows no env and no files."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class WorldOptions:
    """Which world, and how it is run.

    Attributes:
        world: a shipped world's name, or a world folder; with a preset, a published checkpoint's file, folder or hub
            id.
        device: cpu, cuda or cuda:N; the CPU by default.
        dtype: what to compute in; by default what the device computes fast.
        num_steps: denoising passes of a step; the world's own by default.
        window: latent frames of history that a step sees; the world's own by default.
        kv_dtype: how history is stored; by default as it was computed.
        preset: how a published checkpoint is run, such as self-forcing, longlive or matrix-game-2-universal.
        base: folder with the checkpoint's VAE and encoders, if they are not beside it.
        codec: vae, tiny (softer and cheaper) or preview (no weights); vae by default.
        size: height and width of a published world in pixels; its preset's by default.
        prompt: where a text world begins.
        image: picture that a Matrix-Game begins with.
        lora: adapter of a published checkpoint, if it is not beside it.
        text_device: where prompts are encoded; cpu by default.
        text_cache: folder that keeps encoded prompts.
    """

    world: str | None = None
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    num_steps: int | None = None
    window: int | None = None
    kv_dtype: Literal["int8", "fp8"] | None = None
    preset: str | None = None
    base: Path | None = None
    codec: Literal["vae", "tiny", "preview"] | None = None
    size: tuple[int, int] | None = None
    prompt: str | None = None
    image: Path | None = None
    lora: Path | None = None
    text_device: str | None = None
    text_cache: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What is given, by the env's names, as JSON can say it."""
        given = {field.name: getattr(self, field.name) for field in fields(WorldOptions)}
        return {name: plain_option(value) for name, value in given.items() if value is not None}


def plain_option(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
