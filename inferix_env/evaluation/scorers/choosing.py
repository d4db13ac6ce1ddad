"""Which scorers measure: stand-ins, and in their place the published ones that were asked for.

A published scorer that was asked for and cannot be loaded is an error, never a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from inferix_env.evaluation.scorers import published
from inferix_env.evaluation.scorers.scorer import Scorer
from inferix_env.evaluation.scorers.stand_ins import stand_ins

Name = Literal["clarity", "motion", "aesthetic", "background", "subject", "dynamic"]
NAMES: tuple[Name, ...] = get_args(Name)

# What a folder of weights holds, under these names.
MUSIQ, RAFT, AMT_S, HEAD = "musiq_spaq_ckpt-358bb6af.pth", "raft_large.pth", "amt-s.pth", "sa_0_4_vit_l_14_linear.pth"
CLIP_B, CLIP_L, DINO, AMT = "clip-vit-base-patch32", "clip-vit-large-patch14", "dino-vitb16", "AMT"
HUB = {CLIP_B: f"openai/{CLIP_B}", CLIP_L: f"openai/{CLIP_L}", DINO: f"facebook/{DINO}"}


def choose(models: Sequence[Name] = (), weights: str | Path | None = None, device: str = "cpu") -> list[Scorer]:
    """The six scorers.

    Args:
        models: those to measure by their published models; all others are stand-ins.
        weights: folder of their weights; without it, what is on the hub is taken from there.
        device: where the models run; stand-ins are computed on the CPU.

    Raises:
        ValueError: no such scorer, weights that are missing or do not fit, or a package that is not installed.
    """
    unknown = sorted(set(models) - set(NAMES))
    if unknown:
        raise ValueError(f"scorers {unknown}: expected some of {', '.join(NAMES)}")
    folder = None if weights is None else Path(weights).expanduser()
    if folder is not None and not folder.is_dir():
        raise ValueError(f"weights {str(folder)!r}: there is no such folder")
    return [load(s.name, folder, device) if s.name in models else s for s in stand_ins()]


def load(name: str, folder: Path | None, device: str) -> Scorer:
    """A published scorer by its name; see `choose`."""

    def at(item: str) -> str:
        return source(item, folder, name)

    made: dict[str, Callable[[], Scorer]] = {
        "clarity": lambda: published.clarity(at(MUSIQ), device),
        "motion": lambda: published.motion(at(AMT), at(AMT_S), device),
        "aesthetic": lambda: published.aesthetic(at(HEAD), at(CLIP_L), device),
        "background": lambda: published.background(at(CLIP_B), device),
        "subject": lambda: published.subject(at(DINO), device),
        "dynamic": lambda: published.dynamic(at(RAFT), device),
    }
    return made[name]()


def source(item: str, folder: Path | None, name: str) -> str:
    """Where an item of a folder of weights is: there, or, without a folder, on the hub.

    Raises:
        ValueError: it is at neither.
    """
    if folder is None:
        if item not in HUB:
            raise ValueError(
                f"{name} by its published model needs {item}, which no hub id brings: give a weights folder"
            )
        return HUB[item]
    if not (folder / item).exists():
        raise ValueError(f"weights {str(folder)!r}: {name} by its published model needs {item} in it")
    return str(folder / item)
