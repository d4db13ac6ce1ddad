"""PlayConfig: everything that can be set about playing. Knows no env, no window and no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class PlayConfig:
    """Play a world in a window; with no display, a scripted agent plays into a clip and a contact sheet.

    Keys in the window: those of the world, held; R reset, Space pause, N one step, S screenshot, V recording, F1 help,
    Esc quit. In a world of prompts T or Enter opens a line to type one.

    Attributes:
        world: a shipped world's name, or a world folder; with a preset, a published checkpoint's file, folder or hub
            id.
        seed: of the first episode; later ones count on from it.
        device: cpu, cuda or cuda:N; by default the CPU for worlds made for it, and CUDA, where there is one, for
            published checkpoints.
        dtype: what to compute in; by default what the device computes fast.
        num_steps: denoising passes of a step; the world's own by default.
        scale: how many pixels wide a pixel is drawn; by default what fits the screen, and 4 in files.
        out: folder for clips and pictures.
        script: actions such as "right*8,left*4,none*2", "forward+left*3,mouse(0,0.1)" or '"a red fox"*4', repeated, or
            a .jsonl file; in a window they are taken while no key is held.
        steps: when to stop; by default after 120 steps (of a published world, 10), and never in a window.
        headless: open no window.
        preset: how a published checkpoint is run, such as self-forcing, longlive or matrix-game-2-universal.
        base: folder with the checkpoint's VAE and encoders, if they are not beside it.
        codec: vae, tiny (softer and cheaper) or preview (no weights); vae by default.
        size: height and width of a published world in pixels; its preset's by default.
        prompt: where a text world begins.
        image: picture that a Matrix-Game begins with.
        text_device: where prompts are encoded; cpu by default.
        text_cache: folder that keeps encoded prompts.
    """

    world: str = "doom-take-cover"
    seed: int = 0
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    num_steps: int | None = None
    scale: int | None = None
    out: Path = Path("out")
    script: str | None = None
    steps: int | None = None
    headless: bool = False
    preset: str | None = None
    base: Path | None = None
    codec: Literal["vae", "tiny", "preview"] | None = None
    size: tuple[int, int] | None = None
    prompt: str | None = None
    image: Path | None = None
    text_device: str | None = None
    text_cache: Path | None = None

    @property
    def published(self) -> dict[str, Any]:
        """What is given of a published checkpoint, by the env's names."""
        names = ("preset", "base", "codec", "size", "prompt", "image", "text_device", "text_cache")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def check(config: PlayConfig) -> None:
    """Raise ValueError for a setting that cannot be."""
    for name, value, least in (("seed", config.seed, 0), ("scale", config.scale, 1), ("steps", config.steps, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
