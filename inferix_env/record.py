"""Frames to files: an mp4 of every frame, a PNG contact sheet, arrays as npz.

Every file appears under its own name only when it is complete. Knows frames and files; knows no env and no window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

# Visually lossless on upscaled pixels; lower only makes bigger files.
QUALITY = {"crf": "16", "preset": "veryfast"}
BT709, LIMITED_RANGE = 1, 1  # FFmpeg's numbers
GAP = 2  # black pixels between the pictures of a sheet


class Recorder:
    """Writes frames to an mp4 (H.264, yuv420p) that any player shows.

    Each pixel becomes a `scale` x `scale` square, so that small worlds stay crisp; an odd side is made even by
    repeating its last line. Nothing is written before the first frame.

    Args:
        path: the file to write, ending in .mp4; one that is there is replaced at `close`.
        size: (H, W) of the frames in pixels.
        fps: frames a second.
        scale: how many pixels of the file a pixel of the frames becomes, each way.

    Raises:
        ValueError: an argument is out of range, the folder is missing, or PyAV is.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: float, scale: int = 4):
        self.path, self.size, self.scale = Path(path).expanduser(), (int(size[0]), int(size[1])), scale
        if self.path.suffix != ".mp4":
            raise ValueError(f"video {str(path)!r}: expected a name that ends in .mp4")
        if not self.path.parent.is_dir():
            raise ValueError(f"video {str(path)!r}: there is no folder {str(self.path.parent)!r}; create it first")
        if min(self.size) < 1 or scale < 1 or not 0 < fps <= 1000:
            raise ValueError(f"size {size}, scale {scale}, fps {fps}: expected sizes from 1 and 0 < fps <= 1000")
        self.fps = Fraction(fps).limit_denominator(1001)
        self.num_frames = 0
        self.closed = False
        self._av = import_av()
        self._temporary = temporary_name(self.path)
        self._container: Any = None
        self._stream: Any = None

    def add(self, frames: np.ndarray) -> None:
        """Append every frame of a block, uint8 [T, H, W, 3].

        Raises:
            ValueError: the frames have another shape or type, or the recorder is closed.
            OSError: the file cannot be written; what was written of it is removed.
        """
        check_frames(frames, self.size)
        if self.closed:
            raise ValueError(f"{self.path.name} is closed: make a new Recorder to go on")
        try:
            for frame in frames:
                self._encode(enlarge(frame, self.scale))
        except self._av.error.FFmpegError as error:
            self.discard()
            raise OSError(f"video {str(self.path)!r} cannot be written: {error}") from None

    def close(self) -> Path | None:
        """Finish the file and give it its name; returns it, or None where no frame came. Closing twice is fine.

        Raises:
            OSError: the file cannot be written; what was written of it is removed.
        """
        if self._container is not None:
            try:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                os.replace(self._temporary, self.path)
            except (OSError, self._av.error.FFmpegError) as error:
                self.discard()
                raise OSError(f"video {str(self.path)!r} cannot be written: {error}") from None
        self._container, self.closed = None, True
        return self.path if self.num_frames else None

    def discard(self) -> None:
        """Close and leave no file."""
        if self._container is not None:
            try:
                self._container.close()
            except self._av.error.FFmpegError:
                pass  # it could not be finished, and is not wanted
            finally:
                self._temporary.unlink(missing_ok=True)
        self._container, self.closed, self.num_frames = None, True, 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, also after Ctrl-C: the finished part is kept. Any other error leaves no file."""
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.discard()

    def _open(self, height: int, width: int) -> None:
        """Begin the file, tagged BT.709: players guess the colours of an untagged one by its size."""
        self._container = self._av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=self.fps, options=QUALITY)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE

    def _encode(self, picture: np.ndarray) -> None:
        if self._container is None:
            self._open(*picture.shape[:2])
        frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation="AREA")  # keeps edges sharp
        frame.pts = self.num_frames
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [H * scale, W * scale, 3], crisp, an odd side made even by repeating its last line."""
    height, width = frame.shape[0] * scale, frame.shape[1] * scale
    large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.pad(large, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_sheet(path: str | Path, frames: np.ndarray, columns: int, scale: int = 2) -> Path:
    """Write a PNG contact sheet: frames uint8 [B, H, W, 3] in rows of `columns`, each pixel `scale` wide.

    Raises:
        ValueError: no frames, frames of another type, or `columns` or `scale` below 1.
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    check_frames(frames, frames.shape[1:3])
    if not len(frames) or columns < 1 or scale < 1:
        raise ValueError(f"{len(frames)} frames, columns {columns}, scale {scale}: expected at least 1 of each")
    count, height, width, _ = frames.shape
    columns = min(columns, count)
    canvas = np.zeros((-(-count // columns) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), np.uint8)
    for i, frame in enumerate(frames):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[y : y + height, x : x + width] = frame
    temporary = temporary_name(path)
    try:
        Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1)).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays as a compressed npz; the same arrays give the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # names are free
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    temporary = temporary_name(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def temporary_name(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(f".{path.name}.part")


def check_frames(frames: np.ndarray, size: tuple[int, int]) -> None:
    """Raise ValueError unless `frames` are uint8 [T, H, W, 3] of this size."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*size, 3):
        expected = f"uint8 [T, {size[0]}, {size[1]}, 3]" if len(size) == 2 else "uint8 [T, H, W, 3]"
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}: expected {expected}")


def import_av() -> Any:
    """PyAV, which is optional; ValueError with the way to get it."""
    try:
        import av
    except ImportError as error:
        raise ValueError(f"videos need PyAV: pip install 'inferix-env[video]' ({error})") from None
    return av
