"""python -m inferix_env.evaluation.reference: learn what a world's guards compare a dream with, off the real env.

Plays episodes from the seeds that the world was trained on, encodes their frames, and writes guard.safetensors beside
the world (see inferix_env.reference): statistics of the latents, and a probe that reads actions off two of them. Some
of the episodes are kept to say how well the probe does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from engine import DiscreteActions, WorldModel, WorldSpec, read_card
from inferix_env import worlds
from inferix_env.evaluation.dreaming import check_world
from inferix_env.evaluation.episodes import Episode, RealGame
from inferix_env.evaluation.players import make_player
from inferix_env.evaluation.policies import find_sides, sticky, strafe, uniform
from inferix_env.reference import KINDS, ActionProbe, Reference, loss, statistics, whitening, write_reference

CHUNK = 32


@dataclass(frozen=True)
class ReferenceConfig:
    """Learn a world's reference.

    Attributes:
        world: a shipped world's name, or a world folder.
        episodes: how many are played, a third each under uniform, sticky and strafing actions; where actions are
            not discrete, under random ones and those that are held for 6 and for 12 steps.
        limit: the longest, in steps.
        kept: one in so many is not learned from.
        epochs: passes over the pairs.
        seed: of the first episode, and of the probe.
    """

    world: str = "doom-take-cover"
    episodes: int = 180
    limit: int = 150
    kept: int = 6
    epochs: int = 6
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        if min(self.limit, self.epochs) < 1 or self.kept < 2 or self.episodes < 2 * self.kept or self.seed < 0:
            raise ValueError(f"{self}: expected counts from 1, --kept from 2 and at least twice as many --episodes")


@dataclass(frozen=True)
class Run:
    """One real episode in latents: float32 [T, C, h, w] and encoded actions [T, A], row t of which led to frame t."""

    latents: Tensor
    actions: Tensor


@torch.inference_mode()
def encode(model: WorldModel, episode: Episode) -> Run:
    """A real episode as the world's codec has it."""
    chunks = [
        model.codec.encode(torch.from_numpy(episode.frames[None, i : i + CHUNK]).to(model.device))[0][0].float().cpu()
        for i in range(0, len(episode.frames), CHUNK)
    ]
    return Run(torch.cat(chunks).clone(), torch.from_numpy(episode.actions[: len(episode.frames)]))


def pairs(runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
    """All latent frames but the first of each run: those before, themselves, and the actions between."""
    before = torch.cat([run.latents[:-1] for run in runs])
    after = torch.cat([run.latents[1:] for run in runs])
    return before, after, torch.cat([run.actions[1:] for run in runs])


def learn_probe(spec: WorldSpec, runs: Sequence[Run], kind: str, epochs: int, seed: int) -> ActionProbe:
    """A probe of these runs' actions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe, rng = ActionProbe(spec), np.random.default_rng(seed)
        before, after, actions = pairs(runs)
        count = max(1, len(actions) // 64)
        optimiser = torch.optim.AdamW(probe.parameters(), 1.5e-3, weight_decay=0.01)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=epochs * count)
        for _ in tqdm(range(epochs), desc="probe", unit="epoch", leave=False, disable=None):
            for picks in np.array_split(rng.permutation(len(actions)), count):
                guess = probe(before[picks], after[picks])
                optimiser.zero_grad()
                loss(guess, actions[picks], torch.ones(actions.shape[1]), kind).mean().backward()
                optimiser.step()
                rates.step()
    return probe.eval().requires_grad_(False)


@torch.inference_mode()
def guesses(probe: ActionProbe, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """What the probe says of all pairs, and the actions that they had."""
    before, after, actions = pairs(runs)
    rows = [probe(before[i : i + 256], after[i : i + 256]) for i in range(0, len(actions), 256)]
    return torch.cat(rows), actions


def kind_of(spec: WorldSpec) -> str:
    """Raises ValueError where actions are neither discrete nor continuous."""
    kind = spec.actions.kind
    if kind not in KINDS:
        raise ValueError(f"{spec.name} has {kind} actions: a probe reads discrete or continuous ones")
    return kind


def learn(
    spec: WorldSpec, runs: Sequence[Run], kept: int, epochs: int, seed: int
) -> tuple[Reference, dict[str, float]]:
    """A reference of real runs, and how it does on the `kept`-th of them, which it did not see."""
    kind = kind_of(spec)
    seen, unseen = [run for i, run in enumerate(runs) if i % kept], list(runs[::kept])
    mean, whiten = whitening(np.concatenate([statistics(run.latents) for run in seen]))
    probe = learn_probe(spec, seen, kind, epochs, seed)
    guess, actions = guesses(probe, unseen)
    residual = torch.ones(actions.shape[1])
    if kind == "continuous":
        residual = (guess - actions).square().mean(0).clamp_min(1e-6)
    reference = Reference(mean, whiten, probe, residual, kind)
    distances = [reference.distance(x) for run in unseen for x in run.latents]
    misses = loss(guess, actions, residual, kind)
    scores = {"pairs": len(actions), "distance": float(np.mean(distances)), "missed": float(misses.mean())}
    if kind == "discrete":
        scores["accuracy"] = float((guess.argmax(-1) == actions.argmax(-1)).float().mean())
    return reference, scores


def play(card: dict, spec: WorldSpec, config: ReferenceConfig) -> list[Episode]:
    """Real episodes from the seeds the world was trained on."""
    kind_of(spec)
    seeds = range(config.seed, config.seed + config.episodes)
    game = RealGame.of_card(spec, card)
    try:
        if not isinstance(spec.actions, DiscreteActions):
            players = [make_player(text, spec, card) for text in ("random", "sticky", "sticky:12")]
            return list(game.follow(players, seeds, config.limit, "reference"))
        n = spec.actions.width
        policies = [uniform(n), sticky(n), strafe(n, find_sides(spec, card))]
        return list(game.play(policies, seeds, config.limit, "reference"))
    finally:
        game.close()


def run(config: ReferenceConfig) -> tuple[Path, dict[str, float]]:
    """Play, learn, write; returns the path and the scores.

    Raises:
        ValueError: the world names no real env, or one that cannot be played.
    """
    config.check()
    folder = worlds.find(config.world)
    card = read_card(folder)
    model = worlds.model(folder, "cpu", None)
    check_world(model.spec, model)
    episodes = play(card, model.spec, config)
    runs = [encode(model, episode) for episode in episodes if len(episode.frames) > 1]
    reference, scores = learn(model.spec, runs, config.kept, config.epochs, config.seed)
    return write_reference(folder, reference), scores


def main() -> None:
    try:
        path, scores = run(tyro.cli(ReferenceConfig, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {path}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
