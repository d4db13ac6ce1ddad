"""python -m inferix_env.evaluation report: fidelity, ranking and drift of a world as one HTML page and one JSON.

Parts that were measured before, by this command or by their own, are taken as they stand where the world's weights are
the same; those that are missing are measured. The page holds everything it shows and asks nothing of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from inferix_env.evaluation import drifting, fidelity, ranking, runs, written
from inferix_env.evaluation.episodes import require
from inferix_env.evaluation.page import page
from inferix_env.evaluation.players import make_player

PartName = Literal["fidelity", "ranking", "drift"]


@dataclass(frozen=True)
class Config:
    """Write a world's report.

    Attributes:
        world: a shipped world's name, or a world folder.
        only: its parts; all by default.
        policies: who plays the real episodes of fidelity.
        ranked: the policies that are ranked.
        policy: who leads the long dream.
        episodes: of fidelity, and of each ranked policy.
        limit: the longest real episode, in steps.
        steps: of the long dream.
        quick: try the command out in a few minutes, on a few short episodes. The numbers say nothing.
        pages: the folder of WORLD.html and WORLD.json.
        out: folder of the parts; out/evaluation/WORLD by default.
        again: measure all parts again.
        env: the real env, in place of the card's.
        device: cpu, cuda or cuda:N.
        dtype: what to compute in; by default what the device computes fast.
    """

    world: str = "doom-take-cover"
    only: tuple[PartName, ...] = ("fidelity", "ranking", "drift")
    policies: tuple[str, ...] = ("random", "sticky")
    ranked: tuple[str, ...] = ("random", "sticky", "sticky:20", "noop")
    policy: str = "sticky"
    episodes: int = 24
    limit: int = 150
    steps: int = 5_000
    quick: bool = False
    pages: Path = Path("out/reports")
    out: Path | None = None
    again: bool = False
    env: str | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None


def measures(config: Config) -> dict[str, Callable[[], dict[str, Any]]]:
    """What measures each part, with this report's settings."""
    given: dict[str, Any] = {name: getattr(config, name) for name in ("world", "out", "env", "device", "dtype")}
    given |= {"again": True}
    count, limit = (4, 30) if config.quick else (config.episodes, config.limit)
    true = fidelity.Config(policies=config.policies, episodes=count, limit=limit, **given)
    ranks = ranking.Config(policies=config.ranked, episodes=count, limit=limit, **given)
    long = drifting.Config(policy=config.policy, steps=120 if config.quick else config.steps, **given)
    if config.quick:
        true = replace(true, learn=6, horizons=(1, 2, 4, 8))
        long = replace(long, chunks=4, window=10)
    return {
        "fidelity": lambda: fidelity.measure(true),
        "ranking": lambda: ranking.measure(ranks),
        "drift": lambda: drifting.measure(long if config.again else replace(long, again=False)),
    }


def standing(folder: Path, name: str, weights: str) -> dict[str, Any] | None:
    """A part that was measured of the same weights, or None."""
    path = folder / f"{name}.json"
    part = runs.read(path) if path.is_file() else None
    return part if part and part["setting"].get("weights") == weights else None


def collect(config: Config) -> tuple[dict[str, Any], Path]:
    """The report as plain JSON, and the folder of its pictures.

    Raises:
        ValueError: the world cannot be measured with these settings.
    """
    require("matplotlib", "evaluation")
    opened = runs.open_world(config.world, config.device, config.dtype)
    for text in (*config.policies, *config.ranked, config.policy):
        make_player(text, opened.spec, opened.card)  # refused now, not after the part before
    folder, measure = runs.folder_of(config.out, config.world), measures(config)
    setting, parts = runs.setting_of(opened, config), {}
    for name in [name for name in measure if name in config.only]:
        kept = None if config.again else standing(folder, name, setting["weights"])
        print(f"{name}: {'as it was kept in ' + str(folder) if kept else 'to be measured'}", flush=True)
        parts[name] = kept or measure[name]()
    keys = ("weights", "env", "frame_skip", "settle", "device", "dtype")
    spec = opened.spec
    world = {"name": spec.name, "frame": list(spec.frame), "fps": spec.fps, **{key: setting[key] for key in keys}}
    about = runs.about(opened.model)
    return {"format": runs.FORMAT, "version": runs.VERSION, "world": world, "about": about, "parts": parts}, folder


def run(config: Config) -> int:
    """The command: measure what is missing, write the page and the JSON."""
    report, folder = collect(config)
    pages = config.pages.expanduser()
    name = report["world"]["name"]
    written.write(pages / f"{name}.html", page(report, folder))
    written.write_json(pages / f"{name}.json", report)
    size = (pages / f"{name}.html").stat().st_size / 1e6
    print(f"wrote {pages / name}.html ({size:.1f} MB) and {pages / name}.json")
    return 0
