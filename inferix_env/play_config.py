"""PlayConfig: everything that can be set about playing. Knows no env, no window and no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class PlayConfig:
    """Play a world in a window; with no display, a scripted agent plays into a clip and a contact sheet.

    Keys in the window: those of the world, held; R reset, Space pause, N one step, S screenshot, V recording, F1 help,
    Esc quit.

    Attributes:
        world: a shipped world's name, or a world folder.
        seed: of the first episode; later ones count on from it.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
        num_steps: denoising passes of a step; the world's own by default.
        scale: how many pixels wide a pixel is drawn; by default what fits the screen, and 4 in files.
        out: folder for clips and pictures.
        script: actions such as "right*8,left*4,none*2", repeated, or a .jsonl file; in a window they are taken
            while no key is held.
        steps: when to stop; by default after 120 steps, and never in a window.
        headless: open no window.
    """

    world: str = "doom-take-cover"
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    num_steps: int | None = None
    scale: int | None = None
    out: Path = Path("out")
    script: str | None = None
    steps: int | None = None
    headless: bool = False


def check(config: PlayConfig) -> None:
    """Raise ValueError for a setting that cannot be."""
    for name, value, least in (("seed", config.seed, 0), ("scale", config.scale, 1), ("steps", config.steps, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
