"""Clips: video files and folders of PNGs, as frames of one size, one after another. Knows no actions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.training.pixels import resize

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


@dataclass(frozen=True)
class Clip:
    """A video file, or a folder of PNGs in the order of their names.

    Attributes:
        size: (H, W) of its pictures in pixels.
        num_frames: as the file says; `frames` refuses a clip that has others.
        fps: frames a second; None for PNGs.
    """

    path: Path
    size: tuple[int, int]
    num_frames: int
    fps: float | None

    @property
    def name(self) -> str:
        """What its actions go by: the file's name without its ending, or the folder's."""
        return self.path.name if self.path.is_dir() else self.path.stem

    def frames(self, every: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Every n-th frame from the first on, uint8 [H, W, 3], resized by area averaging.

        Raises:
            ValueError: a frame cannot be read, is of another size, or there are not as many as the file says; names
                the clip and the frame.
        """
        count = 0
        for i, picture in enumerate(pngs(self.path) if self.path.is_dir() else pictures(self.path)):
            if picture.shape[:2] != self.size:
                raise ValueError(
                    f"clip {self.path}, frame {i}: {picture.shape[1]}x{picture.shape[0]} pixels, the frames before "
                    f"have {self.size[1]}x{self.size[0]}: cut the clip there"
                )
            count = i + 1
            if i % every == 0:
                yield resize(picture, size)
        if count != self.num_frames:
            raise ValueError(
                f"clip {self.path}: {count} frames could be read of {self.num_frames}: it is damaged; re-encode it"
            )


def find_clips(folder: Path) -> list[Clip]:
    """All clips of a folder, by name.

    Raises:
        ValueError: there is none, two have one name, or one cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}: expected one with clips and their action logs")
    paths = [
        p for p in sorted(folder.iterdir()) if p.suffix.casefold() in VIDEOS or (p.is_dir() and any(p.glob("*.png")))
    ]
    if not paths:
        raise ValueError(f"no clips in {str(folder)!r}: expected videos ({', '.join(VIDEOS)}) or folders of PNGs")
    clips = [open_folder(path) if path.is_dir() else open_video(path) for path in paths]
    names = [clip.name for clip in clips]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"clips {twice} in {str(folder)!r} have the same name, by which their actions go: rename one")
    return clips


def open_folder(path: Path) -> Clip:
    first = next(pngs(path))
    return Clip(path, first.shape[:2], len(list(path.glob("*.png"))), None)


def open_video(path: Path) -> Clip:
    """What a video is: packets are counted, not decoded."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"clip {path} holds no video")
            stream = container.streams.video[0]
            count = sum(1 for packet in container.demux(stream) if packet.size)
            rate = stream.average_rate
            return Clip(path, (stream.height, stream.width), count, float(rate) if rate else None)
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"clip {path} cannot be read: {error}") from None


def pngs(path: Path) -> Iterator[np.ndarray]:
    """Pictures of a folder, uint8 [h, w, 3]."""
    for file in sorted(path.glob("*.png")):
        try:
            with Image.open(file) as image:
                yield np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise ValueError(f"picture {file} cannot be read: {error}") from None


def pictures(path: Path) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 [h, w, 3]."""
    av, number = import_av(), 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                number += 1
    except av.error.FFmpegError as error:
        raise ValueError(f"clip {path}, frame {number}: cannot be decoded: {error}") from None


def import_av() -> Any:
    """PyAV, which is optional; ValueError with the way to get it."""
    try:
        import av
    except ImportError as error:
        raise ValueError(f"videos need PyAV: pip install 'inferix-env[video]' ({error})") from None
    return av
