"""python -m inferix_env.evaluation damage: how far known damage moves each scorer, and each form of drift.

Real clips of the given worlds' games are blurred, frozen, cast, faded, swapped, made noisy and made to flicker, at
several strengths, and scored beside the same clips undamaged. Writes damage.json, damage.png and damage-frames.png.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import DiscreteActions, WorldSpec, read_card
from inferix_env import worlds
from inferix_env.evaluation import runs, written
from inferix_env.evaluation.damage_findings import Shown, findings_of
from inferix_env.evaluation.damage_study import study
from inferix_env.evaluation.episodes import RealGame, require
from inferix_env.evaluation.players import make_player
from inferix_env.evaluation.scorers import Name, choose

FEWEST = 3  # frames of a chunk that every scorer needs
TRIES = 100  # episodes played for one clip that is long enough


@dataclass(frozen=True)
class Config:
    """Measure how far known damage moves each scorer.

    Attributes:
        worlds: shipped worlds' names, or world folders, whose games are played; a clip of one is swapped into those of
            the next.
        clips: of each game.
        frames: of a clip.
        chunks: that a clip is cut into.
        strengths: of the damage at the clip's end, from 0 (none) to 1.
        models: scorers to measure by their published models, in place of stand-ins: clarity, motion, aesthetic,
            background, subject, dynamic.
        weights: folder of the models' weights (docs/lvbench.md); by default what is on the hub is taken from there.
        device: where the models run: cpu, cuda or cuda:N.
        seed: of the first real episode; later ones count on from it.
        out: folder for the JSON and the pictures.
    """

    worlds: tuple[str, ...] = ("doom-take-cover", "car-racing")
    clips: int = 3
    frames: int = 120
    chunks: int = 10
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    models: tuple[Name, ...] = ()
    weights: Path | None = None
    device: str = "cpu"
    seed: int = 50_000
    out: Path = Path("out/evaluation/damage")

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        if not self.worlds or self.clips < 1 or self.seed < 0:
            raise ValueError(
                f"--worlds {list(self.worlds)} --clips {self.clips} --seed {self.seed}: expected at least one world, "
                "one clip of it, and a seed from 0"
            )
        if len(self.worlds) * self.clips < 2:
            raise ValueError("one clip of one world: expected two clips or more, as one is swapped into another")
        if self.chunks < 4 or self.frames < FEWEST * self.chunks:
            raise ValueError(
                f"--frames {self.frames} --chunks {self.chunks}: expected 4 chunks or more of {FEWEST} frames"
            )
        distinct = len(set(self.strengths)) == len(self.strengths) > 0
        if not distinct or any(not 0 < s <= 1 for s in self.strengths):
            raise ValueError(f"--strengths {list(self.strengths)}: expected different numbers above 0 and up to 1")


def real_clips(world: str, count: int, frames: int, seed: int) -> list[np.ndarray]:
    """The first frames uint8 [frames, H, W, 3] of real episodes that last as long.

    Raises:
        ValueError: no such world, no real env, or many episodes end sooner.
    """
    card = read_card(worlds.find(world))
    spec = WorldSpec.from_dict(card["spec"])
    named = isinstance(spec.actions, DiscreteActions) and {"left", "right"} <= set(spec.actions.names)
    player = make_player("strafe" if named else "sticky:12", spec, card)
    game, found = RealGame.of_card(spec, card), []
    try:
        for episode in game.follow([player], range(seed, seed + TRIES * count), frames, f"{world}"):
            if len(episode.frames) >= frames:
                found.append(episode.frames[:frames].copy())
            if len(found) == count:
                return found
    finally:
        game.close()
    raise ValueError(f"{world}: {len(found)} of {TRIES * count} real episodes have {frames} frames: ask for fewer")


def measure(config: Config) -> dict[str, Any]:
    """The study, kept in the config's folder; returns it as plain JSON.

    Raises:
        ValueError: a setting is wrong, or a package or a scorer's weights are missing.
    """
    config.check()
    require("matplotlib", "evaluation")
    scorers = choose(config.models, config.weights, config.device)
    began = time.monotonic()
    made = {world: real_clips(world, config.clips, config.frames, config.seed) for world in config.worlds}
    clips = {f"{world} {i + 1}": clip for world, found in made.items() for i, clip in enumerate(found)}
    names, shift = list(clips), config.clips if len(config.worlds) > 1 else 1
    others = {name: clips[names[(i + shift) % len(names)]] for i, name in enumerate(names)}
    results = study(clips, others, scorers, config.strengths, config.chunks, config.seed)
    shown = Shown(clips[names[0]], others[names[0]], config.chunks, config.strengths)
    findings = findings_of(results, scorers, shown)
    data = {
        "format": runs.FORMAT,
        "version": runs.VERSION,
        "part": "damage",
        "setting": {name: runs.plain(value) for name, value in asdict(config).items() if name != "out"},
        "about": runs.about(),
        **written.keep(config.out.expanduser(), findings, time.monotonic() - began),
    }
    written.write_json(config.out.expanduser() / "damage.json", data)
    return data


def run(config: Config) -> int:
    """The command: measure, print what had to move and whether it did; exit status 1 where something did not."""
    data = measure(config)
    for check in data["checks"]:
        print(
            f"{'pass' if check['passed'] else 'FAIL'}  {check['name']} {written.number(check['value'])}{check['unit']}"
        )
    print(f"wrote {config.out}/damage.json ({data['seconds']:.0f} s)")
    return 0 if all(check["passed"] for check in data["checks"]) else 1
