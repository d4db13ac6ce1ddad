"""Named presets of published models: what no weight tells. Facts as published with each model; values only.

A preset's window counts, as its authors do, the sinks, the history and the block itself; `policy` turns that into
what a block may see of the past.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from engine.published import Guidance, Rollout, Staggered
from engine.spec import KVPolicy

FOUR, THREE = (1000, 750, 500, 250), (1000, 666, 333)


@dataclass(frozen=True)
class Preset:
    """How a checkpoint is run.

    Attributes:
        rollout: the sampler, and what happens to the history.
        window: latent frames in the cache: sinks, past and the block; None for all of them. A staggered rollout tells
            itself what a block sees.
        sink: of these, the first of the video.
        block: latent frames denoised together.
        size: (H, W) in pixels.
        fps: of playback.
        mode: of a Matrix-Game: which keys there are.
        trained: latent frames up to which the checkpoint was trained; beyond is extrapolation.
        adapter: the checkpoint is a base that needs the adapter published with it.
        head_width, text_tokens: of attention, and of a prompt: sizes that no shape tells.
    """

    rollout: Rollout | Staggered
    window: int | None = 21
    sink: int = 0
    block: int = 3
    size: tuple[int, int] = (480, 832)
    fps: float = 16.0
    mode: str = ""
    trained: int = 21
    adapter: bool = False
    head_width: int = 128
    text_tokens: int = 512

    @property
    def policy(self) -> KVPolicy:
        """What a block may see of the past."""
        if isinstance(self.rollout, Staggered):
            return KVPolicy(None if self.rollout.reach is None else self.rollout.reach * self.block)
        if self.window is None:
            return KVPolicy(None)
        return KVPolicy(self.window - self.sink - self.block, self.sink)


def magi(rollout: Staggered, size: tuple[int, int]) -> Preset:
    """A preset of MAGI-1, in chunks of a second."""
    return Preset(rollout, block=6, size=size, fps=24.0, text_tokens=800)


SMALL, WIDE = (720, 720), (720, 1280)
SELF_FORCING = Rollout(FOUR, shift=5.0)
LONGLIVE = Rollout(FOUR, shift=5.0, rewrite="window")
PRESETS: dict[str, Preset] = {
    "self-forcing": Preset(SELF_FORCING),
    "self-forcing-demo": Preset(Rollout(FOUR, shift=8.0)),
    "self-forcing-i2v": Preset(Rollout(FOUR, shift=5.0, first_block=1), window=22),
    "self-forcing-framewise": Preset(SELF_FORCING, block=1),
    "causvid": Preset(Rollout((1000, 757, 522), warp=False, shift=8.0, restart=(21, 3))),
    "causvid-warp4": Preset(Rollout(FOUR, shift=8.0, restart=(21, 3))),
    "longlive": Preset(LONGLIVE, window=12, sink=3, trained=120, adapter=True),
    "longlive-infinity": Preset(
        Rollout(FOUR, rewrite="window", relative=True), window=12, sink=3, trained=120, adapter=True
    ),
    "matrix-game-2-universal": Preset(
        Rollout(THREE), window=6, size=(352, 640), fps=25.0, mode="universal", trained=150
    ),
    "matrix-game-2-gta-drive": Preset(
        Rollout(THREE), window=4, size=(352, 640), fps=25.0, mode="gta_drive", trained=150
    ),
    "matrix-game-2-templerun": Preset(
        Rollout(FOUR), window=6, size=(352, 640), fps=25.0, mode="templerun", trained=150
    ),
    "magi-4.5b-base": magi(Staggered(64, guidance=Guidance()), SMALL),
    "magi-4.5b-distill": magi(Staggered(64), SMALL),
    "magi-4.5b-distill-8step": magi(Staggered(8), SMALL),
    "magi-4.5b-distill-window1": magi(Staggered(8, window=1), SMALL),
    "magi-24b-base": magi(Staggered(32, guidance=Guidance()), WIDE),
    "magi-24b-distill": magi(Staggered(16), WIDE),
    "magi-24b-distill-8step": magi(Staggered(8), WIDE),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: there is none; the message has the nearest and all of them.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"preset {name!r}: expected one of {', '.join(PRESETS)}.{hint}")
