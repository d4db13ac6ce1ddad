"""Collect episodes from any Gymnasium env with pictures into shards (see data.py).

Shard i always holds the same episodes: its seeds, behaviours and draws follow from the config and i alone, so a
killed run goes on where it stopped, with any number of workers. Knows gymnasium; does not know torch.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.training.behaviour import make_behaviour, parse_mix
from engine.training.data import TERMINATED, TRUNCATED, Episode, write_shard
from engine.training.pixels import PixelEnv


@dataclass(frozen=True)
class CollectConfig:
    """What to record.

    Attributes:
        env: Gymnasium id, or "module:id".
        height, width: frame size in pixels.
        frame_skip: env steps an action is held; the frame after the last one is kept.
        settle: steps of the neutral action after each reset that are not recorded: past a fade or a zoom.
        behaviours: weighted mix of behaviour policies, one drawn per episode (see behaviour.py).
        frames: training frames to record, at least; validation gets a tenth of it.
        first_seed, num_seeds: env seeds of training episodes; validation takes the `num_seeds // 9` after them.
        max_episode_steps: episodes are cut (truncated) there.
        shard_frames: a shard is closed once it holds this many rows.
        workers: processes.
    """

    env: str = "VizdoomTakeCover-v1"
    height: int = 96
    width: int = 128
    frame_skip: int = 4
    settle: int = 0
    behaviours: str = "random*1, hold:4*3, hold:8*4, still~0.2*1, cycle:14:1/2~0.1*1, cycle:26:1/2~0.1*2"
    frames: int = 200_000
    first_seed: int = 0
    num_seeds: int = 9_000
    max_episode_steps: int = 1_000
    shard_frames: int = 4_000
    workers: int = 2


def record_episode(env: PixelEnv, behaviour: str, seed: int, rng: np.random.Generator, limit: int) -> Episode:
    """Play one episode and return it as rows."""
    act = make_behaviour(behaviour, env.action_space)
    seen = env.reset(seed)
    rows: list[tuple] = [(seen.frame, flat_zero(env.action_space), 0.0, 0, True, seen.variables)]
    while len(rows) <= limit:
        action = act(rows[-1][0], rng)
        seen = env.step(action)
        cut = seen.truncated or (len(rows) == limit and not seen.terminated)
        end = TERMINATED if seen.terminated else TRUNCATED if cut else 0
        rows.append((seen.frame, flatten(env.action_space, action), seen.reward, end, seen.valid, seen.variables))
        if end:
            break
    return Episode(
        frames=np.stack([r[0] for r in rows]),
        actions=np.stack([r[1] for r in rows]),
        rewards=np.array([r[2] for r in rows], np.float32),
        ends=np.array([r[3] for r in rows], np.uint8),
        valid=np.array([r[4] for r in rows], np.uint8),
        variables=np.stack([r[5] for r in rows]),
    )


def flatten(space, action: Any) -> np.ndarray:
    """An action as the row that shards keep: int64 [] for Discrete, float32 [A] for Box, parts joined for Dict."""
    if hasattr(space, "spaces"):
        parts = [np.ravel(flatten(part, action[name])) for name, part in space.spaces.items()]
        return np.concatenate(parts).astype(np.float32)
    if hasattr(space, "n"):
        return np.asarray(int(action) - int(getattr(space, "start", 0)), np.int64)
    return np.asarray(action, np.float32).ravel()


def flat_zero(space) -> np.ndarray:
    return np.zeros_like(flatten(space, space.sample()))


def describe_actions(space) -> dict:
    """A space as plain JSON: what an action spec is built from."""
    if hasattr(space, "spaces"):
        return {"kind": "dict", "parts": {name: describe_actions(part) for name, part in space.spaces.items()}}
    if hasattr(space, "n"):
        return {"kind": "discrete", "n": int(space.n)}
    low, high = (np.broadcast_to(b, space.shape).ravel().tolist() for b in (space.low, space.high))
    return {"kind": "continuous", "low": low, "high": high}


def record_shard(job: tuple[CollectConfig, Path, str, int]) -> int:
    """Record shard `index` of a split, unless it is there; return its rows."""
    config, folder, split, index = job
    path = folder / f"{split}-{index:05d}.safetensors"
    if path.exists():
        return config.shard_frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    key = int.from_bytes(hashlib.sha256(f"{split}/{index}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(key)
    names, weights = zip(*parse_mix(config.behaviours), strict=True)
    first, count = seed_range(config, split)
    env = PixelEnv(config.env, (config.height, config.width), config.frame_skip, settle=config.settle)
    episodes: list[Episode] = []
    while sum(map(len, episodes)) < config.shard_frames:
        seed = first + int(rng.integers(count))
        episodes.append(record_episode(env, str(rng.choice(names, p=weights)), seed, rng, config.max_episode_steps))
    metadata = {
        "config": asdict(config),
        "actions": {**describe_actions(env.action_space), "names": env.action_names},
        "variables": list(env.variable_names),
        "fps": env.env.metadata.get("render_fps"),
    }
    env.close()
    write_shard(path, episodes, metadata)
    return sum(map(len, episodes))


def seed_range(config: CollectConfig, split: str) -> tuple[int, int]:
    """(first seed, number of seeds) of a split."""
    if split == "train":
        return config.first_seed, config.num_seeds
    return config.first_seed + config.num_seeds, max(1, config.num_seeds // 9)


def collect(config: CollectConfig, folder: Path) -> None:
    """Record training and validation shards into `folder`; shards that exist are kept.

    Raises:
        ValueError: the folder holds data recorded with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_same(config, folder / "collect.json")
    counts = {
        "train": -(-config.frames // config.shard_frames),
        "validation": -(-config.frames // 10 // config.shard_frames),
    }
    jobs = [(config, folder, split, i) for split, count in counts.items() for i in range(count)]
    missing = [job for job in jobs if not (folder / f"{job[2]}-{job[3]:05d}.safetensors").exists()]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(config.workers) as pool,
        tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="collect", unit="shard") as bar,
    ):
        for _ in pool.imap_unordered(record_shard, missing):
            bar.update()


def check_same(config: CollectConfig, path: Path) -> None:
    """Refuse to mix data of two configs in a folder; more frames or workers of the same config are fine."""
    kept = {k: v for k, v in asdict(config).items() if k not in ("frames", "workers")}
    if path.exists():
        old = {"settle": CollectConfig.settle, **json.loads(path.read_text())}
        changed = {k: (old.get(k), v) for k, v in kept.items() if old.get(k) != v}
        if changed:
            raise ValueError(f"{path.parent} holds data recorded with other settings {changed}: choose another folder")
    path.write_text(json.dumps(kept, indent=1))
