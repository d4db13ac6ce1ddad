"""A recorded case of MAGI-1 -> the model that a user would have: a published folder, opened with `engine.load`.

Knows names of files and of switches; compares nothing.

Legend: T tokens of a text, D its width.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import engine
from benchmarks.parity.case import Case
from engine import WorldModel
from engine.checkpoints.magi_config import read_config
from engine.conditioners.magi_conditioner import MagiConditioner
from engine.conditioners.magi_text import MagiText
from engine.models.magi import MagiDiT
from engine.models.magi_guidance import Guided
from engine.opening_magi import preset_of
from engine.published import Staggered

# The published code's environment variables by the names that we have for what they switch on.
SWITCHES = {
    "PAD_STATIC": "static",
    "PAD_DYNAMIC": "dynamic",
    "PAD_BORDERNESS": "borders",
    "PAD_HQ": "hq",
    "PAD_THREE_D_MODEL": "3d",
    "PAD_TWO_D_ANIME": "anime",
    "PAD_DURATION": "duration",
}
NEGATIVE = "NEG_PROMPT"
DTYPES = {"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16}


def write_checkpoint(case: Case, folder: Path) -> Path:
    """The case's weights, config and special tokens, as published; returns the folder."""
    settings = case.info["config"]["engine_config"]
    kind = "inference_weight" + ".fp8" * settings["fp8_quant"] + ".distill" * settings["distill"]
    (folder / kind).mkdir()
    save_file({name: x.contiguous() for name, x in case["weights"].items()}, folder / kind / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.info["config"]))
    if tokens := special_of(case):
        np.savez(folder / "special_tokens.npz", **{name: x.numpy() for name, x in tokens.items()})
    return folder


def load(case: Case, folder: Path, device: str, size: tuple[int, int] | None = None) -> WorldModel:
    """The model of a case, in its own precision.

    Args:
        size: (H, W) of latents, where the case has some; else that of the config.
    """
    config = read_config(case.info["config"])
    preset = preset_of(config, case.path)
    assert isinstance(preset.rollout, Staggered)
    weight = case.info.get("prev_chunks_scale", preset.rollout.near_clean_weight)
    preset = replace(preset, rollout=replace(preset.rollout, near_clean_weight=weight))
    dtype = DTYPES[case.info["config"]["model_config"]["params_dtype"]]
    names, negative = switches_of(case.info.get("env", ()))
    extras: dict[str, Any] = {"tokens": names if special_of(case) else (), "base": folder}
    extras |= {"size": (size[0] * 8, size[1] * 8)} if size else {}
    path = write_checkpoint(case, folder)
    model = engine.load(path, device, dtype, preset, codec="preview", **extras)
    return with_negative(model) if negative else model


def with_negative(model: WorldModel) -> WorldModel:
    """The same model whose text of no prompt has the negative tokens before it, which no option of ours asks for."""
    guided, conditioner = model.denoiser, model.conditioner
    assert isinstance(guided, Guided)
    assert isinstance(conditioner, MagiConditioner)
    conditioner.assembly = replace(conditioner.assembly, negative=True)
    nothing = conditioner.assembly.nothing()
    return replace(model, denoiser=Guided(guided.denoiser, nothing, guided.rollout, guided.frames))


def assembly_of(model: WorldModel) -> MagiText:
    """What puts special tokens before the model's prompts."""
    assert isinstance(model.conditioner, MagiConditioner)
    return model.conditioner.assembly


def network_of(model: WorldModel) -> MagiDiT:
    """The denoiser itself, without what combines its predictions."""
    assert isinstance(model.denoiser, Guided)
    return model.denoiser.denoiser


def switches_of(variables: tuple[str, ...] | list[str]) -> tuple[tuple[str, ...], bool]:
    """Special tokens that were on, by our names, and whether negative ones were.

    Raises:
        ValueError: a variable is unknown.
    """
    unknown = [name for name in variables if name not in SWITCHES and name != NEGATIVE]
    if unknown:
        raise ValueError(f"its switch {unknown[0]!r} is unknown; known are {', '.join(SWITCHES)}, {NEGATIVE}")
    return tuple(SWITCHES[name] for name in variables if name in SWITCHES), NEGATIVE in variables


def special_of(case: Case) -> dict[str, Tensor]:
    """The arrays of the special tokens' file; none where the case has none."""
    return {name.removeprefix("special."): x for name, x in case["in"].items() if name.startswith("special.")}
