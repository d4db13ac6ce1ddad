"""One world on one process, and on two that share it: the same actions, the frames of both, and their difference."""

import time
from pathlib import Path

import numpy as np
import tyro

from engine import ParallelConfig, ShardedEngine
from inferix_env.env import WorldSimEnv
from inferix_env.evaluation.sheets import sheet
from inferix_env.record import write_sheet


def dream(env: WorldSimEnv, actions: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Frames uint8 [T, H, W, 3] of an episode until it ends or there are no more actions, and seconds of a step."""
    frames, started = [env.reset(seed=seed)[0]], time.perf_counter()
    for action in actions:
        frames.append(env.step(action)[0])
        if env.over:
            break
    return np.stack(frames), (time.perf_counter() - started) / (len(frames) - 1)


def draw(out: Path, clips: dict[str, np.ndarray], columns: int) -> None:
    """Write some frames of clips [T, H, W, 3], a row each."""
    count = len(next(iter(clips.values())))
    shown = np.unique(np.linspace(0, count - 1, columns).round().astype(int))
    rows = [(name, frames[shown].astype(np.uint8)) for name, frames in clips.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_sheet(out, sheet(rows, [f"step {i}" for i in shown])[None], columns=1, scale=1)


def main(
    world: str = "doom-take-cover",
    exchange: str = "auto",
    ranks: int = 2,
    dtype: str = "float32",
    steps: int = 24,
    columns: int = 7,
    seed: int = 0,
    out: Path = Path("out/two_ranks.png"),
) -> int:
    """Write a picture: a row of one process's frames, one of two, and their difference, 64 times enlarged.

    Two processes on one CPU are no faster than one; on two GPUs a large model is (docs/many-gpus.md).

    Args:
        world: a world's name or folder.
        exchange: ulysses, ring, pass-q, all-gather, or auto for the cheapest by the planner's prices.
        ranks: processes that share the world.
        dtype: bfloat16 is faster on CPUs that have it, and its rounding shows.
        steps: how long the episode is; every action is held for a quarter of it.
        columns: how many frames are shown.
        seed: of the world and its actions.
        out: the picture.

    Returns:
        The largest difference of any frame, in levels of 255.
    """
    if steps < 1 or columns < 2:
        raise ValueError(f"steps {steps}, columns {columns}: expected at least 1 and 2")
    alone = WorldSimEnv(world=world, dtype=dtype)
    shared = WorldSimEnv(world=world, dtype=dtype, parallel=ParallelConfig(ranks=ranks, exchange=exchange))
    alone.action_space.seed(seed)
    actions = np.repeat([alone.action_space.sample() for _ in range(4)], -(-steps // 4), axis=0)[:steps]
    (one, slow), (two, fast) = (dream(env, actions, seed) for env in (alone, shared))
    assert isinstance(shared.engine, ShardedEngine)
    chosen = str(shared.engine.exchange)
    for env in (alone, shared):
        env.close()
    if len(one) != len(two):
        raise RuntimeError(f"the episode ended after {len(one) - 1} steps on one rank and {len(two) - 1} on {ranks}")
    apart = np.abs(one.astype(int) - two.astype(int))
    draw(out, {"one rank": one, f"{ranks} ranks": two, "difference\nx 64": (64 * apart).clip(0, 255)}, columns)
    print(
        f"{out}: {len(one) - 1} steps; {1e3 * slow:.0f} ms a step on one rank, {1e3 * fast:.0f} on {ranks} ({chosen}); "
        f"at most {apart.max()} of 255 apart"
    )
    return int(apart.max())


if __name__ == "__main__":
    tyro.cli(main)
