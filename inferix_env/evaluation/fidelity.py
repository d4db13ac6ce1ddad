"""python -m inferix_env.evaluation fidelity: the dream against reality, from the same frames under the same actions.

Real episodes are played (or read: --recorded). From a place in each, with the real frames before it as context, the
world dreams on under the actions that were really taken; and once more under another episode's, as a baseline.
Closeness over the horizon, rewards, ends and control are measured with intervals over episodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import Engine
from inferix_env.evaluation import perceptual, runs
from inferix_env.evaluation.closeness import PAIRWISE, Frames, measures_of, repeated
from inferix_env.evaluation.dreaming import GROUP, context_length, reconstruct
from inferix_env.evaluation.episodes import Episode, RealGame, require
from inferix_env.evaluation.fidelity_config import Config
from inferix_env.evaluation.fidelity_findings import Measured, findings_of
from inferix_env.evaluation.measures import Measure
from inferix_env.evaluation.outcomes import ask_each, end_measures, reward_measures
from inferix_env.evaluation.players import make_player
from inferix_env.evaluation.probe import ProbeSize
from inferix_env.evaluation.recorded import recorded
from inferix_env.evaluation.steering import steer_measures
from inferix_env.evaluation.stretches import Stretch, dream, stretches_of, wrong_actions

STEERED = 32  # steps of a stretch that the probe is asked of


@dataclass(frozen=True, eq=False)
class Reality:
    """Real episodes: to dream from, and for the probe to learn from."""

    tested: list[Episode]
    learned: list[Episode]


def collect(opened: runs.Opened, config: Config) -> Reality:
    """Play or read real episodes.

    Raises:
        ValueError: a policy or file is wrong, or there are too few.
    """
    if config.recorded:
        found = recorded(config.recorded, opened.spec, config.episodes + config.learn)
        if len(found) < config.episodes:
            raise ValueError(f"--recorded holds {len(found)} episodes: expected --episodes {config.episodes} or more")
        return Reality(found[: config.episodes], found[config.episodes :])
    runs.check_seed(config.seed, opened)
    players = [make_player(text, opened.spec, opened.card) for text in config.policies]
    game = RealGame.of_card(opened.spec, opened.card, config.env)
    try:
        seeds = range(config.seed, config.seed + config.episodes + config.learn)
        episodes = list(game.follow(players, seeds, config.limit, "fidelity"))
    finally:
        game.close()
    return Reality(episodes[: config.episodes], episodes[config.episodes :])


def measure_all(engine: Engine, reality: Reality, config: Config) -> Measured:
    """Dream from every stretch twice, and compare."""
    rng = np.random.default_rng(config.seed)
    stretches = stretches_of(reality.tested, engine, max(config.horizons), rng)
    true = dream(engine, stretches, [s.actions for s in stretches], rng, "dream")
    false = dream(engine, stretches, wrong_actions(stretches), rng, "dream under wrong actions")
    frames = {
        "dream": [d.frames for d in true],
        "wrong actions": [d.frames for d in false],
        "repeat last frame": [repeated(s) for s in stretches],
        "codec": [through_codec(engine, s.frames, config.horizons) for s in stretches],
    }
    measures = measures_of(stretches, frames, config.horizons, chosen(config, engine))
    rewards = {"dream": [d.rewards for d in true], "wrong actions": [d.rewards for d in false]}
    measures += reward_measures(stretches, rewards, config.horizons)
    asked = ask_each(engine, reality.tested)
    measures += end_measures(asked)
    if len(reality.learned):
        measures += steered(engine, reality, stretches, frames, config)
    if config.fvd:
        shown = {kind: frames[kind] for kind in ("dream", "wrong actions", "repeat last frame")}
        measures += perceptual.video_distances(
            stretches, shown, perceptual.features_of(config.fvd, engine.model.device)
        )
    return Measured(stretches, frames, measures, asked)


def chosen(config: Config, engine: Engine) -> list:
    """What is measured of pairs of frames."""
    extra = [("LPIPS", "", "lower", "mean", perceptual.lpips_distance(engine.model.device))] if config.lpips else []
    return [*PAIRWISE, *extra]


def through_codec(engine: Engine, frames: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    """Real frames [S, H, W, 3], those at the horizons and the first few encoded and decoded; others are left blank."""
    wanted = sorted({h - 1 for h in horizons if h <= len(frames)} | set(range(min(STEERED, len(frames)))))
    out = np.zeros_like(frames)
    out[wanted] = reconstruct(engine.model, frames[wanted])
    return out


def steered(
    engine: Engine, reality: Reality, stretches: Sequence[Stretch], frames: Frames, config: Config
) -> list[Measure]:
    """Control, of the first steps of each stretch."""
    cut = [Stretch(s.name, s.start, s.frames[:STEERED], s.actions[:STEERED], s.rewards[:STEERED]) for s in stretches]
    shown = {kind: [run[:STEERED] for run in frames[kind]] for kind in ("codec", "dream", "wrong actions")}
    size, device = ProbeSize(), engine.model.device
    return steer_measures(engine.spec, reality.learned, cut, shown, size, config.seed, device)


def measure(config: Config) -> dict:
    """The part `fidelity` of a report: measured, or as it was kept.

    Raises:
        ValueError: a setting is wrong, or the world has no real env.
    """
    config.check()
    require("matplotlib", "evaluation")
    opened, folder, setting, kept = runs.begin(config, "fidelity")
    if kept:
        return kept
    began = time.monotonic()
    reality = collect(opened, config)
    # One engine of one size: the same groups every time, the same numbers.
    measured = measure_all(Engine(opened.model, max_worlds=GROUP, deterministic=False), reality, config)
    findings = findings_of(measured, config, opened.spec, context_length(opened.spec))
    return runs.keep(folder, "fidelity", findings, setting, opened.model, time.monotonic() - began)


def run(config: Config) -> int:
    """The command: measure, and say where it stands."""
    runs.tell(measure(config), runs.folder_of(config.out, config.world))
    return 0
