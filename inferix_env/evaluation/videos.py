"""Videos as streams: frames come in blocks of bounded memory, however long the file is.

Knows files and PyAV; knows nothing of what the frames are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from inferix_env.record import import_av

BLOCK, BYTES = 32, 2**26  # a block has at most so many frames, and, past its first, so many bytes


class Unreadable(ValueError):
    """A video that cannot be read to its end; the message says why."""


def read_blocks(path: str | Path) -> Iterator[np.ndarray]:
    """The frames of a video, in order, as blocks uint8 [T, H, W, 3]: one is held at a time.

    Raises:
        Unreadable: no such file, no video in it, data that cannot be decoded, or frames of several sizes.
    """
    block: list[np.ndarray] = []
    for frame in decoded(path):
        block.append(frame.to_ndarray(format="rgb24"))
        if len(block) == BLOCK or (len(block) + 1) * block[0].nbytes > BYTES:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def measure_video(path: str | Path) -> tuple[int, tuple[int, int]]:
    """How many frames a video has and their (H, W), by decoding all of it: what containers claim is often wrong.

    Raises:
        Unreadable: see `read_blocks`; or there are no frames.
    """
    count, size = 0, (0, 0)
    for frame in decoded(path):
        count, size = count + 1, (frame.height, frame.width)
    if not count:
        raise Unreadable(f"{name(path)} has no frames")
    return count, size


def decoded(path: str | Path) -> Iterator[Any]:
    """A video's frames as PyAV has them, all of one size; raises Unreadable."""
    first, count = "", 0
    with opened(path) as (container, stream):
        for frame in container.decode(stream):
            size = f"{frame.width}x{frame.height}"
            first = first or size
            if size != first:
                raise Unreadable(f"{name(path)} changes its size from {first} to {size} at frame {count}: expected one")
            count += 1
            yield frame


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its first video stream; what goes wrong with either is Unreadable."""
    av = import_av()
    place = Path(path).expanduser()
    if not place.is_file():
        raise Unreadable(f"{name(path)}: there is no such file")
    try:
        with av.open(str(place)) as container:
            if not container.streams.video:
                raise Unreadable(f"{name(path)} has no video in it")
            stream = container.streams.video[0]
            check_whole(stream, place)
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise Unreadable(f"{name(path)} cannot be decoded: {getattr(error, 'strerror', None) or error}") from None


def check_whole(stream: Any, path: Path) -> None:
    """Raise Unreadable for a file that ends before its index does: a decoder would stop there without a word."""
    entries = stream.index_entries
    if len(entries):
        end, size = entries[-1].pos + entries[-1].size, path.stat().st_size
        if end > size:
            raise Unreadable(f"{name(path)} is cut off: it has {size:,} bytes of {end:,} or more")


def name(path: str | Path) -> str:
    """A file as messages name it: without its folder, so that results do not depend on where it lies."""
    return Path(path).name
