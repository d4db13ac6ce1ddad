"""A path or hub id -> WorldModel: one of our world folders, or a published checkpoint under a preset."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoints.formats import SUFFIXES
from engine.checkpoints.places import HUB_ID
from engine.extras import extras_of
from engine.loading import check_device, check_dtype, load_world
from engine.model import WorldModel
from engine.opening_magi import holds_magi, open_magi
from engine.opening_wan import open_wan
from engine.presets import PRESETS, Preset
from engine.presets import preset as named
from engine.published import Staggered

# The preset that stands for the config json beside the weights.
CONFIG = "config"


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    preset: str | Preset | None = None,
    **extras,
) -> WorldModel:
    """Load a world for inference.

    Args:
        source: a world folder (world.json, model.safetensors), or a published checkpoint: a file, a folder, or a hub
            id such as "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt".
        device: "cpu", "cuda", "cuda:1", ...
        dtype: torch's, or its name ("float32", "bfloat16"); by default bf16 where the device computes in it, fp32
            elsewhere.
        preset: what a published checkpoint's weights do not tell: window, sinks, steps (see presets.PRESETS), by
            name or as a value of your own. "config", or None: as the config json says that lies with the weights
            (MAGI-1).
        extras: of a published checkpoint; see `Extras`.

    Raises:
        ValueError: the source, weights, device or an argument is not what it should be.
    """
    own = (Path(source) / "world.json").is_file()
    if own and (preset is not None or extras):
        given = [*(["preset"] if preset is not None else []), *extras]
        raise ValueError(f"{source} is a world folder, whose card says all: leave out {', '.join(given)}")
    if own or (preset is None and not looks_published(source)):
        return load_world(source, device, dtype)
    chosen = named(preset) if isinstance(preset, str) and preset != CONFIG else preset
    placed = check_device(device), check_dtype(dtype)
    if holds_magi(source) or (isinstance(chosen, Preset) and isinstance(chosen.rollout, Staggered)):
        return open_magi(source, chosen if isinstance(chosen, Preset) else None, *placed, extras_of(extras))
    if not isinstance(chosen, Preset):
        raise ValueError(
            f"{source} is a published checkpoint: say how it is run with preset=..., one of engine.PRESETS "
            f"({', '.join(PRESETS)})"
        )
    return open_wan(source, chosen, *placed, extras_of(extras))


def looks_published(source: str | Path) -> bool:
    """Whether a source without world.json might be a checkpoint: a file, a folder with weights in it, or a hub id."""
    path = Path(source)
    if path.is_dir():
        return any(path.rglob(f"*{suffix}") for suffix in SUFFIXES)
    hub = HUB_ID.fullmatch(str(source))
    return path.is_file() or bool(hub and (hub["scheme"] or not Path(path.parts[0]).is_dir()))
