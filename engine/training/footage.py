"""python -m engine.training.footage FOLDER OUT: videos with action logs to shards, as `collect` writes them.

FOLDER holds clips (videos, or folders of PNGs) and, beside each, its actions: NAME.csv or NAME.jsonl for the clip NAME,
or one actions.csv or actions.jsonl for all, with a column `clip`. A log has a row for every frame, or for every step:

    action,reward,terminated          one discrete action, words or whole numbers; or
    left,right,jump,reward            keys, 0 or 1; or any numbers (axes); reward, terminated, truncated may be missing

Row i says what was done while frame i (or the i-th kept frame) was seen, and what came of it; the last row may be
missing. Logs of agents.rollout and `python -m inferix_env.play --record` are such logs.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from engine.actions import ActionSpec
from engine.training.action_log import ActionLog, read_log
from engine.training.action_parts import Part, action_columns, infer_parts, spec_of
from engine.training.clip_episodes import Steps, episodes, steps_of
from engine.training.clips import Clip, find_clips
from engine.training.data import Episode, write_shard


@dataclass(frozen=True)
class FootageConfig:
    """Turn clips with action logs into training data.

    Attributes:
        height: of a frame in pixels; clips are resized to it.
        width: as height.
        frame_skip: frames of a clip that a step lasts. Every so many-th frame is kept; of a log with a row a frame, a
            step takes the action of most of its rows (of axes the mean) and the sum of their rewards.
        fps: of folders of PNGs; videos say theirs.
        columns: which columns are actions; by default `action`, or all but those that say something else.
        action_names: of discrete actions, in order, the one that does nothing first.
        validation: share of the clips that is kept for validation; of a single clip, its last part.
        max_episode_steps: longer clips are cut there.
        shard_frames: a shard is closed once it holds this many rows.
    """

    height: int = 96
    width: int = 128
    frame_skip: int = 1
    fps: float | None = None
    columns: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    validation: float = 0.1
    max_episode_steps: int = 1_000
    shard_frames: int = 4_000


def find_logs(folder: Path, clips: Sequence[Clip]) -> list[ActionLog]:
    """The log of each clip.

    Raises:
        ValueError: a clip has none, or two.
    """
    shared = [path for path in (folder / "actions.csv", folder / "actions.jsonl") if path.is_file()]
    by_clip = split_log(read_log(shared[0])) if shared else {}
    return [find_log(folder, clip, by_clip) for clip in clips]


def find_log(folder: Path, clip: Clip, by_clip: dict[str, ActionLog]) -> ActionLog:
    own = [path for path in (folder / f"{clip.name}.csv", folder / f"{clip.name}.jsonl") if path.is_file()]
    if len(own) > 1:
        raise ValueError(f"clip {clip.path} has two action logs, {own[0].name} and {own[1].name}: remove one")
    found = by_clip.get(clip.name, by_clip.get(clip.path.name))
    if not own and found is None:
        raise ValueError(
            f"clip {clip.path} has no actions: expected {clip.name}.csv or {clip.name}.jsonl beside it, or rows of "
            f"{clip.name!r} in an actions.csv with a column `clip`"
        )
    return read_log(own[0]) if own else found  # type: ignore[return-value]


def split_log(log: ActionLog) -> dict[str, ActionLog]:
    """A log of all clips by clip.

    Raises:
        ValueError: it does not say which.
    """
    if "clip" not in log.columns:
        raise ValueError(f"{log.path} has no column `clip`, which says whose the rows are: {list(log.columns)}")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(log.columns["clip"]):
        rows.setdefault(str(name), []).append(row)
    return {name: log.rows(chosen) for name, chosen in rows.items()}


@dataclass(frozen=True)
class Footage:
    """A folder's clips and what was done in each, checked.

    Attributes:
        parts: of an action.
        fps: frames a second of the clips.
    """

    clips: list[Clip]
    steps: list[Steps]
    parts: list[Part]
    fps: float

    @property
    def actions(self) -> ActionSpec:
        return spec_of(self.parts)


def read_footage(config: FootageConfig, folder: Path) -> Footage:
    """Find clips and logs, and check all that can be without decoding.

    Raises:
        ValueError: something is missing or does not fit; names the file, and the line of a log.
    """
    clips = find_clips(folder)
    logs = find_logs(folder, clips)
    columns = action_columns(logs[0], config.columns)
    for log in logs:
        if set(action_columns(log, config.columns)) != set(columns):
            raise ValueError(f"{log.path} has the actions {action_columns(log)}, {logs[0].path} has {columns}")
    parts = infer_parts(logs, columns, config.action_names)
    steps = [steps_of(clip, log, parts, config.frame_skip) for clip, log in zip(clips, logs, strict=True)]
    return Footage(clips, steps, parts, frame_rate(config, clips))


def frame_rate(config: FootageConfig, clips: Sequence[Clip]) -> float:
    """Frames a second of all clips.

    Raises:
        ValueError: they differ, or nothing says.
    """
    rates = {clip.path: clip.fps or config.fps for clip in clips}
    unknown = [path for path, rate in rates.items() if rate is None]
    if unknown:
        raise ValueError(f"clip {unknown[0]} does not say how many frames a second it has: give --fps")
    (first, rate), *others = [(path, float(rate or 0)) for path, rate in rates.items()]
    for path, other in others:
        if abs(other - rate) > 0.01 * rate:
            raise ValueError(f"clip {path} has {other:g} frames a second, {first} has {rate:g}: convert one of them")
    return rate


def validation_starts(config: FootageConfig, footage: Footage) -> list[int]:
    """The kept frame of each clip from which it is for validation: 0 for some clips, past the last one for the others.

    Which ones follows from their names. A single clip is split in time.
    """
    kept = [-(-clip.num_frames // config.frame_skip) for clip in footage.clips]
    if len(kept) == 1:
        return [max(1, round(kept[0] * (1 - config.validation)))]
    ranks = sorted(range(len(kept)), key=lambda i: hashlib.sha256(footage.clips[i].name.encode()).digest())
    chosen = set(ranks[: max(1, round(len(kept) * config.validation))])
    return [0 if i in chosen else count for i, count in enumerate(kept)]


def split_episodes(config: FootageConfig, footage: Footage) -> Iterable[tuple[str, Episode]]:
    """(split, episode) of all clips, decoded one after another."""
    size = (config.height, config.width)
    given = zip(footage.clips, footage.steps, validation_starts(config, footage), strict=True)
    for clip, steps, start in tqdm(list(given), desc="footage", unit="clip"):
        frames = clip.frames(config.frame_skip, size)
        kept = -(-clip.num_frames // config.frame_skip)
        cut = steps.cut_before(start) if 0 < start < kept else steps
        for first, episode in episodes(frames, kept, cut, footage.actions, config.max_episode_steps):
            yield "validation" if first >= start else "train", episode


def convert(config: FootageConfig, folder: Path, out: Path) -> dict[str, int]:
    """Write shards of all clips to `out`, all or none; returns how many rows each split has.

    Raises:
        ValueError: the footage is not what it should be (see `read_footage`, `Clip.frames`), or `out` holds data.
        OSError: a file cannot be written.
    """
    if any(out.glob("*.safetensors")):
        raise ValueError(f"{out} holds data already: choose another folder, or remove it")
    if not 0 < config.validation < 1 or min(config.frame_skip, config.max_episode_steps, config.shard_frames) < 1:
        raise ValueError("--validation: expected a share between 0 and 1; steps and frames are counted from 1")
    footage = read_footage(config, folder)
    metadata = {
        "config": {"footage": folder.name, "clips": len(footage.clips), **asdict(config)},
        "actions": asdict(footage.actions),
        "variables": [],
        "fps": footage.fps,
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as part:
        rows = write_shards(Path(part), split_episodes(config, footage), config.shard_frames, metadata)
        if not all(rows.values()):
            raise ValueError(f"{folder} gave {rows['train']} rows to train on and {rows['validation']} to validate")
        for path in sorted(Path(part).iterdir()):
            os.replace(path, out / path.name)
    return rows


def write_shards(
    folder: Path, made: Iterable[tuple[str, Episode]], shard_frames: int, metadata: dict[str, Any]
) -> dict[str, int]:
    """Write episodes as they come, and keep no more of them than a shard; returns the rows of each split."""
    pending: dict[str, list[Episode]] = {"train": [], "validation": []}
    rows, shards = dict.fromkeys(pending, 0), dict.fromkeys(pending, 0)

    def write(split: str) -> None:
        if pending[split]:
            write_shard(folder / f"{split}-{shards[split]:05d}.safetensors", pending[split], metadata)
            rows[split] += sum(map(len, pending[split]))
            pending[split], shards[split] = [], shards[split] + 1

    for split, episode in made:
        pending[split].append(episode)
        if sum(map(len, pending[split])) >= shard_frames:
            write(split)
    for split in pending:
        write(split)
    return rows


@dataclass(frozen=True)
class Command:
    """Turn clips with action logs into training data."""

    folder: tyro.conf.Positional[Path]  # with clips and logs
    out: tyro.conf.Positional[Path]  # where the data goes: `python -m engine.training --data OUT` trains on it
    config: Annotated[FootageConfig, tyro.conf.arg(name="")] = field(default_factory=FootageConfig)


def main() -> None:
    command = tyro.cli(Command, prog="python -m engine.training.footage", description=__doc__)
    try:
        rows = convert(command.config, command.folder, command.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: nothing was written")
    print(f"{command.out}: {rows['train']} frames to train on, {rows['validation']} to validate")


if __name__ == "__main__":
    main()
