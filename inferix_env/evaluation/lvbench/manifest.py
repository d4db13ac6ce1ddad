"""The manifest of LV-Bench: which videos there are, of what class and split, and what their captions say when.

The one place that knows the layout (docs/lvbench.md). Reads JSON, JSON lines and CSV; opens no video.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

Split = Literal["train", "eval"]
SPLITS: tuple[Split, ...] = get_args(Split)
EVALUATION = 0.2  # the share of each class that is for evaluation where the manifest does not say

# The names a field may have; the first is ours.
VIDEO = ("video", "video_path", "path", "file")
CLASS = ("class", "category", "label")
SPLIT = ("split", "subset")
CAPTIONS = ("captions", "segments")
TEXT = ("caption", "text", "prompt")
START = ("start", "start_time")
END = ("end", "end_time")
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), SPLITS[0]),
    **dict.fromkeys(("eval", "evaluation", "test", "val", "validation"), SPLITS[1]),
}


@dataclass(frozen=True)
class Caption:
    """What is to be seen from `start` to `end`, seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Video:
    """One entry.

    Attributes:
        key: names its files in a run: its place in the manifest, and its name.
        path: of the video, as the manifest has it.
        label: the class of its main object; "" where there is none.
        captions: by their starts.
    """

    key: str
    path: str
    label: str
    split: Split
    captions: tuple[Caption, ...]


def read_manifest(path: str | Path) -> list[Video]:
    """All videos of a manifest, in its order.

    Raises:
        ValueError: it cannot be read, or an entry is wrong: the message says which, and what was expected.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise ValueError(f"manifest {str(path)!r}: there is no such file")
    readers = {".json": entries_of_json, ".jsonl": entries_of_lines, ".csv": entries_of_csv}
    if place.suffix not in readers:
        raise ValueError(f"manifest {str(path)!r}: expected a name that ends in {', '.join(readers)}")
    try:
        entries = readers[place.suffix](place.read_text(encoding="utf-8-sig"))
        videos = [video_of(i, entry) for i, entry in enumerate(entries)]
        check_videos(videos)
        return with_splits(videos, [found(entry, SPLIT) for entry in entries])
    except (ValueError, csv.Error) as error:  # a JSONDecodeError and a UnicodeDecodeError too
        raise ValueError(f"manifest {place.name}: {error}") from None


def entries_of_json(text: str) -> list[Mapping]:
    data = json.loads(text)
    entries = data.get("videos") if isinstance(data, Mapping) else data
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError('expected a list of objects, or {"videos": [...]}')
    return entries


def entries_of_lines(text: str) -> list[Mapping]:
    return entries_of_json("[" + ",".join(line for line in text.splitlines() if line.strip()) + "]")


def entries_of_csv(text: str) -> list[Mapping]:
    """Entries of rows, one for each caption; a video's rows follow one another or not."""
    entries: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        if None in row or None in row.values():
            raise ValueError(f"row {i}: expected as many cells as the header has")
        name = needed(row, VIDEO, f"row {i}")
        entry = entries.setdefault(name, {**row, CAPTIONS[0]: []})
        for field in (CLASS, SPLIT):
            if found(entry, field) != found(row, field):
                raise ValueError(f"row {i}: {name} has another {field[0]} than in its first row")
        if found(row, TEXT):
            entry[CAPTIONS[0]].append(row)
    return list(entries.values())


def video_of(index: int, entry: Mapping) -> Video:
    """One entry, checked; its split is given later."""
    where = f"video {index + 1}"
    path = str(needed(entry, VIDEO, where))
    captions = found(entry, CAPTIONS) or []
    if not isinstance(captions, Sequence) or isinstance(captions, str):
        raise ValueError(f"{where}, {path}: captions are {captions!r}: expected a list")
    made = [caption_of(caption, f"{where}, {path}, caption {i + 1}") for i, caption in enumerate(captions)]
    made.sort(key=lambda caption: caption.start)
    label = str(found(entry, CLASS) or "")
    return Video(f"{index:05d}-{Path(path).stem}", path, label, "eval", tuple(made))


def caption_of(entry: Any, where: str) -> Caption:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {entry!r}: expected start, end and caption")
    start, end = (seconds(needed(entry, field, where), where) for field in (START, END))
    text = str(needed(entry, TEXT, where)).strip()
    if not 0 <= start < end:
        raise ValueError(f"{where}: from {start:g} to {end:g} s: expected 0 <= start < end")
    return Caption(start, end, text)


def seconds(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: time {value!r}: expected seconds")
    return number


def found(entry: Mapping, names: Sequence[str]) -> Any:
    """The value of the first of the names that there is, or None."""
    return next((entry[name] for name in names if entry.get(name) not in (None, "")), None)


def needed(entry: Mapping, names: Sequence[str], where: str) -> Any:
    value = found(entry, names)
    if value is None:
        raise ValueError(f"{where} has no {names[0]}: it has {', '.join(map(str, entry))}")
    return value


def check_videos(videos: Sequence[Video]) -> None:
    """Raise ValueError for none, or for one that comes twice."""
    if not videos:
        raise ValueError("it lists no videos")
    paths = [video.path for video in videos]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is listed twice")


def with_splits(videos: Sequence[Video], told: Sequence[Any]) -> list[Video]:
    """The videos in the splits they are told, or, where none is told, in ours.

    Raises:
        ValueError: an unknown split, or only some are told.
    """
    if all(split is None for split in told):
        return drawn_splits(videos)
    for video, split in zip(videos, told, strict=True):
        if str(split).lower() not in SPLIT_NAMES:
            raise ValueError(f"{video.path} has the split {split!r}: expected one of {', '.join(SPLIT_NAMES)} for all")
    return [replace(v, split=SPLIT_NAMES[str(split).lower()]) for v, split in zip(videos, told, strict=True)]


def drawn_splits(videos: Sequence[Video]) -> list[Video]:
    """80 % of each class for training, 20 % for evaluation, by the hashes of their paths: the same on every machine."""
    chosen: set[str] = set()
    for label in {video.label for video in videos}:
        paths = [video.path for video in videos if video.label == label]
        paths.sort(key=lambda path: hashlib.sha256(path.encode()).hexdigest())
        chosen.update(paths[: max(1, round(EVALUATION * len(paths)))])
    return [replace(video, split="eval" if video.path in chosen else "train") for video in videos]
