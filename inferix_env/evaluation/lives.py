"""How episodes end: asked of a world step by step along real ones, and lived through in dreams."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from tqdm import tqdm

from engine import Block, Condition, Engine, World
from inferix_env.evaluation.dreaming import GROUP, opened
from inferix_env.evaluation.episodes import Episode
from inferix_env.evaluation.policies import Policy


@dataclass(frozen=True)
class Asked:
    """What the end head said at each of S real steps, and what came.

    Attributes:
        probabilities: of an end [S].
        ended: whether the step ended the episode, bool [S].
        foretold: the reward if it does [S].
        paid: the real reward [S].
        owner: which episode the step is of [S].
    """

    probabilities: np.ndarray
    ended: np.ndarray
    foretold: np.ndarray
    paid: np.ndarray
    owner: np.ndarray

    def of(self, episode: int) -> Asked:
        """The steps of one episode."""
        mine = self.owner == episode
        return Asked(*(getattr(self, x.name)[mine] for x in fields(self)))


def ask_all(engine: Engine, episodes: Sequence[Episode]) -> Asked:
    """Walk along all episodes, a group side by side."""
    parts = []
    with tqdm(total=sum(e.steps for e in episodes), desc="ends along real episodes", unit="step", leave=False) as bar:
        for i in range(0, len(episodes), GROUP):
            parts += ask(engine, episodes[i : i + GROUP], i, bar)
    return Asked(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def ask(engine: Engine, episodes: Sequence[Episode], first: int, bar: tqdm) -> list[tuple[np.ndarray, ...]]:
    """For each step of a group that begins with the `first`: the columns of `Asked`, over those that got so far."""
    out: list[tuple[np.ndarray, ...]] = []
    with opened(engine, [e.rows(0, 1) for e in episodes], range(len(episodes))) as worlds:
        for t in range(1, max(e.steps for e in episodes) + 1):
            alive = [(world, e) for world, e in zip(worlds, episodes, strict=True) if t <= e.steps]
            conditions = [Condition.of(e.actions[t, None]) for _, e in alive]
            odds, foretold = engine.outlook([world for world, _ in alive], conditions)
            ended = np.array([e.terminated and t == e.steps for _, e in alive])
            owner = np.array([first + i for i, e in enumerate(episodes) if t <= e.steps])
            out.append((odds, ended, foretold, np.array([e.rewards[t] for _, e in alive]), owner))
            for world, episode in alive:
                if t < len(episode.frames):
                    engine.observe(world, episode.rows(t, t + 1))
            bar.update(len(alive))
    return out


def survive(
    engine: Engine, episodes: Sequence[Episode], policy: Policy, rng: np.random.Generator, limit: int
) -> list[list[Block]]:
    """Dream an episode from the first frame of each, until its end or `limit`; what every step gave, without frames."""
    waiting = deque(range(len(episodes)))
    lives: list[list[Block]] = [[] for _ in episodes]
    seeds = rng.integers(2**62, size=len(episodes))
    plays = [policy(np.random.default_rng(int(seed) + 1)) for seed in seeds]
    running: dict[int, World] = {}
    try:
        with tqdm(total=len(episodes), desc="survival in dreams", unit="episode", leave=False) as bar:
            while waiting or running:
                while waiting and len(running) < GROUP:
                    i = waiting.popleft()
                    running[i] = engine.open(episodes[i].rows(0, 1), int(seeds[i]))
                for i in advance(engine, running, lives, plays, limit):
                    engine.close(running.pop(i))
                    bar.update()
    finally:
        for world in running.values():
            engine.close(world)
    return lives


def advance(engine: Engine, running: dict[int, World], lives: list, plays: list, limit: int) -> list[int]:
    """Step all running dreams once; return those that are over."""
    choices = np.array([next(plays[i]) for i in running])
    conditions = [Condition.of(row[None]) for row in engine.spec.actions.encode_rows(choices)]
    for i, block in zip(running, engine.step(list(running.values()), conditions), strict=True):
        lives[i].append(replace(block, pictures=block.pictures[:0].clone()))
    return [i for i in running if lives[i][-1].terminated or len(lives[i]) >= limit]
