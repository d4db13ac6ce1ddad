"""python -m inferix_env.evaluation ranking: whether the dream ranks policies as reality does.

Each policy plays real episodes, and as many dreams that begin with the same first frames, from the same seeds; the mean
returns of both are ranked. With --returns a JSON says what policies earned that were played elsewhere:
{"policy": {"real": [1.5, ...], "dream": [2.5, ...]}, ...}, as many of both, from the same starts in the same order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine import Condition, Engine
from inferix_env.evaluation import runs
from inferix_env.evaluation.dreaming import GROUP, opened
from inferix_env.evaluation.episodes import Episode, RealGame, require
from inferix_env.evaluation.players import Player, make_player
from inferix_env.evaluation.ranking_config import Config
from inferix_env.evaluation.ranking_findings import Returns, findings_of


def dream_returns(engine: Engine, player: Player, episodes: Sequence[Episode], limit: int) -> list[float]:
    """What a dream from the first frame of each episode pays, until its end or `limit`, under a player of its own."""
    out: list[float] = []
    for i in range(0, len(episodes), GROUP):
        out += group_returns(engine, player, episodes[i : i + GROUP], limit)
    return out


def group_returns(engine: Engine, player: Player, episodes: Sequence[Episode], limit: int) -> list[float]:
    """`dream_returns` for worlds that are stepped side by side."""
    totals, going = [0.0] * len(episodes), list(range(len(episodes)))
    players, frames = [player.twin() for _ in episodes], [e.frames[0] for e in episodes]
    for own, episode in zip(players, episodes, strict=True):
        own.reset(episode.seed)
    with opened(engine, [e.rows(0, 1) for e in episodes], [e.seed for e in episodes]) as worlds:
        for _ in range(limit):
            rows = [engine.spec.actions.encode(players[i](frames[i])) for i in going]
            blocks = engine.step([worlds[i] for i in going], [Condition.of(row[None]) for row in rows])
            for i, block in zip(going, blocks, strict=True):
                totals[i], frames[i] = totals[i] + block.reward, block.frames[-1]
            going = [i for i, block in zip(going, blocks, strict=True) if not block.terminated]
            if not going:
                break
    return totals


def play_all(opened_world: runs.Opened, config: Config) -> dict[str, Returns]:
    """Returns of each policy in reality and in the dream, by its text.

    Raises:
        ValueError: a policy is wrong, or the world has no real env.
    """
    spec, card = opened_world.spec, opened_world.card
    players = [make_player(text, spec, card) for text in config.policies]
    if not players:
        return {}
    runs.check_seed(config.seed, opened_world)
    game = RealGame.of_card(spec, card, config.env)
    engine = Engine(opened_world.model, max_worlds=GROUP, deterministic=False)
    seeds, made = range(config.seed, config.seed + config.episodes), {}
    try:
        for player in tqdm(players, desc="ranking", unit="policy", disable=None):
            episodes = list(game.follow([player], seeds, config.limit, player.name))
            real = [float(e.rewards.sum()) for e in episodes]
            made[player.name] = Returns(real, dream_returns(engine, player, episodes, config.limit))
    finally:
        game.close()
    return made


def read_returns(path: Path) -> dict[str, Returns]:
    """Returns of policies that were played elsewhere; see the head of this file.

    Raises:
        ValueError: the file cannot be read or says something else; names the policy.
    """
    try:
        data = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"--returns {path} cannot be read: {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError(f'--returns {path}: expected {{"policy": {{"real": [...], "dream": [...]}}, ...}}')
    return {str(name): returns_of(path, name, given) for name, given in data.items()}


def returns_of(path: Path, name: str, given: object) -> Returns:
    expected = f"--returns {path}, policy {name!r}: expected real and dream, each a list of at least 2 numbers"
    if not isinstance(given, Mapping) or set(given) != {"real", "dream"}:
        raise ValueError(expected)
    try:
        real, dream = (np.array(given[side], np.float64) for side in ("real", "dream"))
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if real.ndim != 1 or real.shape != dream.shape or len(real) < 2 or not np.isfinite([*real, *dream]).all():
        raise ValueError(f"{expected}, as many of both, finite")
    return Returns(real.tolist(), dream.tolist())


def measure(config: Config) -> dict:
    """The part `ranking` of a report: measured, or as it was kept.

    Raises:
        ValueError: a setting is wrong, or there are fewer than three policies.
    """
    config.check()
    require("matplotlib", "evaluation")
    given = read_returns(config.returns) if config.returns else {}
    twice = sorted(set(given) & set(config.policies))
    count = len(config.policies) + len(given)
    if twice or count < 3:
        raise ValueError(f"{count} policies, {twice} both played and given: expected at least 3 to rank, each once")
    told = {name: [r.real, r.dream] for name, r in given.items()}
    opened_world, folder, setting, kept = runs.begin(config, "ranking", given=told)
    if kept:
        return kept
    began = time.monotonic()
    returns = {**play_all(opened_world, config), **given}
    findings = findings_of(returns, config)
    return runs.keep(folder, "ranking", findings, setting, opened_world.model, time.monotonic() - began)


def run(config: Config) -> int:
    """The command: measure, and say where it stands."""
    runs.tell(measure(config), runs.folder_of(config.out, config.world))
    return 0
