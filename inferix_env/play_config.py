"""PlayConfig: everything that can be set about playing. Knows no env, no window and no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferix_env.world_options import WorldOptions


@dataclass(frozen=True)
class PlayConfig(WorldOptions):
    """Play a world in a window; with no display, a scripted agent plays into a clip and a contact sheet.

    Keys in the window: those of the world, held; R reset, Space pause, N one step, S screenshot, V recording, F1 help,
    Esc quit. In a world of prompts T or Enter opens a line to type one.

    Attributes:
        device: cpu, cuda or cuda:N; by default the CPU for worlds made for it, and CUDA, where there is one, for
            published checkpoints.
        seed: of the first episode; later ones count on from it.
        scale: how many pixels wide a pixel is drawn; by default what fits the screen, and 4 in files.
        out: folder for clips and pictures.
        record: keep a log of each episode in the folder, with every action: `python -m agents.rollout --replay LOG`
            plays it again, frame for frame.
        script: actions such as "right*8,left*4,none*2", "forward+left*3,mouse(0,0.1)" or '"a red fox"*4', repeated, or
            a .jsonl file; in a window they are taken while no key is held.
        steps: when to stop; by default after 120 steps (of a published world, 10), and never in a window.
        headless: open no window.
    """

    world: str = "doom-take-cover"
    seed: int = 0
    scale: int | None = None
    out: Path = Path("out")
    record: bool = False
    script: str | None = None
    steps: int | None = None
    headless: bool = False


def check(config: PlayConfig) -> None:
    """Raise ValueError for a setting that cannot be."""
    for name, value, least in (("seed", config.seed, 0), ("scale", config.scale, 1), ("steps", config.steps, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
