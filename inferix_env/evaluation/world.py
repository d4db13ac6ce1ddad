"""python -m inferix_env.evaluation world: a world against the real game, on real episodes it was never trained on.

Writes results.json, pictures and a Markdown report, and prints every target with pass or fail. Every section is kept
when it is done: after a stop, `--only` the others. `--help` lists every setting.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch

from engine import Engine, WorldModel, read_card
from inferix_env import worlds
from inferix_env.evaluation import written
from inferix_env.evaluation.dreaming import GROUP, check_world
from inferix_env.evaluation.episodes import RealGame, require
from inferix_env.evaluation.policies import find_sides
from inferix_env.evaluation.runs import machine, trained_seeds
from inferix_env.evaluation.sections import SECTIONS
from inferix_env.evaluation.sections import run as measure

SectionName = Literal["codec", "dream", "free-run", "round-trip", "control", "termination"]


@dataclass(frozen=True)
class Config:
    """Measure a world against the real game.

    Attributes:
        world: a shipped world's name, or a world folder.
        env: the real env, a Gymnasium id or "module:id"; the one in the world's card by default.
        frame_skip: env steps that an action is held; the card's by default.
        out: folder for results.json, the pictures and results.md. By default docs/results.md and
            docs/images/evaluation/; for a quick trial out/evaluation/.
        quick: try the command out in a minute or so, on a few short episodes. The numbers say nothing.
        only: sections to measure; all by default.
        seed: first start seed of real episodes; sections take 1,000 seeds each from there.
        sides: the actions (left, right); by default those that the world names so.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
        write_card: put the targets and their values into the world's world.json, as "results".
    """

    world: str = "doom-take-cover"
    env: str | None = None
    frame_skip: int | None = None
    out: Path | None = None
    quick: bool = False
    only: tuple[SectionName, ...] = ()
    seed: int = 10_000
    sides: tuple[int, int] | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    write_card: bool = False


@dataclass(frozen=True)
class Places:
    """Where results go: the page, the folder of results.json and the pictures."""

    page: Path
    folder: Path

    @property
    def pictures(self) -> str:
        """The folder as seen from the page, with a slash where it is another."""
        seen = os.path.relpath(self.folder, self.page.parent)
        return "" if seen == "." else Path(seen).as_posix() + "/"


def find_places(config: Config) -> Places:
    if config.out is None and not config.quick:
        return Places(Path("docs/results.md"), Path("docs/images/evaluation"))
    folder = (config.out or Path("out/evaluation")).expanduser()
    return Places(folder / "results.md", folder)


def check(config: Config, data: Mapping[str, Any]) -> None:
    """Raise ValueError for settings that contradict each other or the world."""
    if config.env is None and "env" not in data:
        raise ValueError(f"the card of {config.world} names no real env: give --env")
    if config.quick and config.write_card:
        raise ValueError("a quick trial's numbers are not for a card: give --quick or --write-card, not both")
    if config.seed < trained_seeds(data):
        raise ValueError(f"--seed {config.seed}: {config.world} was trained on seeds below {trained_seeds(data)}")
    require("matplotlib", "evaluation")


def describe(config: Config, folder: Path, card: Mapping[str, Any], model: WorldModel) -> dict[str, Any]:
    """What the numbers depend on: results of one setting can be added to one another."""
    data = card.get("data", {})
    return {
        "world": model.spec.name,
        "env": config.env or data["env"],
        "frame_skip": config.frame_skip or int(data.get("frame_skip", 1)),
        "frame": list(model.spec.frame),
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "trained_seeds": trained_seeds(data),
        "seed": config.seed,
        "quick": config.quick,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def save(places: Places, results: dict[str, Any], card: Mapping[str, Any]) -> None:
    written.write_json(places.folder / "results.json", results)
    written.write(places.page, written.page(results, places.pictures, card.get("agents", ())))


def evaluate(config: Config) -> dict[str, Any]:
    """Measure the sections, keeping each as it is done; returns the results as plain JSON.

    Raises:
        ValueError: the world cannot be measured with these settings.
    """
    folder = worlds.find(config.world)
    card = read_card(folder)
    check(config, card.get("data", {}))
    model = worlds.model(folder, config.device, config.dtype)
    sides = config.sides or find_sides(model.spec, card)
    check_world(model.spec, model)
    setting, places = {**describe(config, folder, card, model), "sides": list(sides)}, find_places(config)
    engine = Engine(model, max_worlds=GROUP, deterministic=False)  # the same groups every time: the same numbers
    results = written.read_results(places.folder / "results.json", setting)
    results |= {"machine": machine(model.device), "torch": torch.__version__, "date": date.today().isoformat()}
    game = RealGame.of_card(model.spec, card, config.env, config.frame_skip)
    try:
        for name in [name for name in SECTIONS if name in (config.only or SECTIONS)]:
            began = time.monotonic()
            findings = measure(name, engine, game, sides, config.seed, config.quick)
            done = {**results["sections"], name: written.keep(places.folder, findings, time.monotonic() - began)}
            results["sections"] = {key: done[key] for key in SECTIONS if key in done}
            save(places, results, card)
            print(f"{name}: {results['sections'][name]['seconds']:.0f} s", flush=True)
    finally:
        game.close()
    if config.write_card:
        written.write_json(folder / "world.json", {**card, "results": written.card_entry(results)})
    written.print_targets(results)
    print(f"wrote {places.page} and {places.folder}/results.json")
    return results


def run(config: Config) -> int:
    """The command: `evaluate`, keeping what was done where it is stopped."""
    try:
        evaluate(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("sections that were done are kept; measure the others with --only") from None
    return 0
