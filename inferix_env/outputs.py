"""Files of play: their names, their folder, and how large a pixel is in them. Knows no session and no command."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from inferix_env.env import WorldSimEnv
from inferix_env.record import Recorder, write_sheet

# Screen pixels a pixel is wide in a file, by default: small worlds are enlarged, as far as to this width.
FILE_SCALE, FILE_WIDTH = 4, 800


def world_name(env: WorldSimEnv) -> str:
    """The name of a world as the command takes it, or of a published checkpoint."""
    return (env.world_spec.name if env.settings.preset else env.folder.name).replace("_", "-")


def file_scale(frame: tuple[int, int]) -> int:
    """How wide a pixel of frames (H, W) is in a file, by default."""
    return max(1, min(FILE_SCALE, FILE_WIDTH // frame[1]))


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """`folder/stem-001.suffix`, or the first number that is not taken."""
    paths = (folder / f"{stem}-{number:03d}{suffix}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())


def make_folder(path: Path) -> None:
    """Make a folder for files, unless it is there; OSError, with the way out, if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"folder {str(path)!r} cannot be made ({error.strerror}): choose another with --out") from None


def save_picture(path: Path, frame: np.ndarray, scale: int | None) -> Path:
    """Write a frame uint8 [H, W, 3] as a PNG; makes the folder. Returns the path; OSError if it cannot be written."""
    make_folder(path.parent)
    return write_sheet(path, frame[None], 1, scale or file_scale(frame.shape[:2]))


def open_recorder(env: WorldSimEnv, path: Path, scale: int | None) -> Recorder:
    """A recorder of this world's frames; makes the folder."""
    make_folder(path.parent)
    return Recorder(path, env.world_spec.frame, env.world_spec.fps, scale or file_scale(env.world_spec.frame))
