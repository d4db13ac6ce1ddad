"""Recordings of the published models' own code, replayed by two ranks under every exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import engine
from benchmarks.parity import rollouts
from benchmarks.parity.__main__ import replay
from engine.parallel.mesh import Mesh
from engine.parallel.sharding import shard
from tests.exchange_cases import NAMES, exchange_of
from tests.ranks import run

FOLDER = Path(__file__).parent / "parity"
FILES = sorted(FOLDER.glob("*/*rollout*.safetensors"))
QUICK = [("sf_rollout_window", "ulysses"), ("mg2_rollout_universal", "ring"), ("rollout_distill", "pass-q")]


def replay_on(rank: int, path: str, exchange: str) -> tuple[str, list[tuple[str, bool, float]], list[str]]:
    """What missed, on this rank: a problem, rows, and outputs that nothing was compared with."""
    load, compare = engine.load, rollouts.compare_pages

    def sharded(*args: Any, **settings: Any) -> engine.WorldModel:
        return shard(load(*args, **settings), Mesh.of(exchange_of(exchange, dist.get_world_size())))

    engine.load = sharded
    if rank:  # whole pages are the first rank's
        rollouts.compare_pages = lambda *args: None
    try:
        case, problem = replay(Path(path), "cpu")
    finally:
        engine.load, rollouts.compare_pages = load, compare
    if case is None:
        return problem, [], []
    return problem, [(row.name, row.passed, row.share) for row in case.rows], case.missing()


def check(path: Path, exchange: str) -> None:
    for rank, (problem, rows, missing) in enumerate(run(replay_on, str(path), exchange, timeout=120)):
        assert problem == ""
        assert [name for name, passed, _ in rows if not passed] == []
        assert missing == [] or rank
        assert len(rows) > 3


@pytest.mark.parametrize(("name", "exchange"), QUICK)
def test_two_ranks_make_what_was_recorded(name, exchange):
    [path] = [p for p in FILES if p.stem == name]
    check(path, exchange)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", NAMES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_two_ranks_make_every_recorded_rollout(path, exchange):
    check(path, exchange)
