"""Checkpoint -> WorldModel, strict; and the way back.

A world is a folder: `world.json` (the card; its "spec" is a WorldSpec), `model.safetensors` (codec.*, denoiser.*,
heads.*) and `starts.npz` (openings of real episodes). Every tensor is used once, shapes are checked, and a file that
does not fit gives one error before anything is kept.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.codecs.autoencoder import AutoEncoder
from engine.hardware import default_dtype
from engine.model import WorldModel
from engine.models.action_dit import ActionDiT
from engine.models.heads import Heads
from engine.packing import packed_where_served
from engine.spec import CodecSpec, WorldSpec


class Parts(nn.Module):
    """The modules of a world, under the names its weights have in the file."""

    def __init__(self, codec: AutoEncoder, denoiser: ActionDiT, heads: Heads):
        super().__init__()
        self.codec, self.denoiser, self.heads = codec, denoiser, heads


def build(spec: WorldSpec) -> Parts:
    """The modules of a spec, with fresh weights."""
    assert isinstance(spec.codec, CodecSpec)
    codec = AutoEncoder(spec.codec.channels, spec.codec.widths, spec.codec.depth)
    return Parts(codec, ActionDiT(spec), Heads(spec))


def assemble(
    spec: WorldSpec, modules: Parts, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> WorldModel:
    """A WorldModel for inference out of built modules, moved to `device` and `dtype` (its fast one by default)."""
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    modules = modules.to(device, dtype).eval().requires_grad_(False)
    modules.codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    denoiser = packed_where_served(modules.denoiser, device, dtype)
    return WorldModel(spec, denoiser, modules.codec, modules.heads, device, dtype)


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a world folder.

    Raises:
        ValueError: there is no world there, or its card cannot be read.
    """
    path = Path(folder) / "world.json"
    if not path.is_file():
        raise ValueError(f"no world at {folder}: expected a folder with world.json and model.safetensors")
    try:
        card = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if "spec" not in card:
        raise ValueError(f"{path} has no 'spec'")
    return card


def load_world(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | str | None = None
) -> WorldModel:
    """Load a world folder for inference.

    Args:
        device: "cpu", "cuda", "cuda:1", ...
        dtype: torch's, or its name ("float32", "bfloat16"); by default bf16 where the device computes in it, fp32
            elsewhere.

    Raises:
        ValueError: the folder, card, weights or device is not what it should be.
    """
    device = check_device(device)
    precision = check_dtype(dtype)
    spec = WorldSpec.from_dict(read_card(folder)["spec"])
    return assemble(spec, load_parts(folder, spec), device, precision)


def load_parts(folder: str | Path, spec: WorldSpec) -> Parts:
    """The modules of a world folder, in fp32 on the CPU."""
    with torch.device("meta"):
        modules = build(spec)
    modules.load_state_dict(read_tensors(Path(folder) / "model.safetensors", modules), assign=True)
    return modules


def check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype itself, or the one called so."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in known:
        raise ValueError(f"dtype {dtype!r}: expected one of {list(known)}")
    return known[dtype]


def check_device(device: torch.device | str) -> torch.device:
    """The device, if this machine has it."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r}: expected cpu, cuda or cuda:N") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; use device='cpu'"
        )
    return found


def read_tensors(path: Path, modules: nn.Module) -> dict[str, Tensor]:
    """All tensors of a file, as the modules expect them, in fp32.

    Raises:
        ValueError: names or shapes differ; lists each with the nearest expected name.
    """
    expected = {name: tuple(t.shape) for name, t in modules.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            problems = compare(expected, found)
            if problems:
                raise ValueError(f"{path} does not fit its card:\n  " + "\n  ".join(problems))
            return {name: file.get_tensor(name).float() for name in found}
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def compare(expected: dict[str, tuple], found: dict[str, tuple]) -> list[str]:
    """What is missing, unexpected or of another shape, a line each."""
    lines = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    for name, shape in found.items():
        if name not in expected:
            near = difflib.get_close_matches(name, expected, 1)
            lines.append(f"unexpected {name} {list(shape)}" + (f" (nearest: {near[0]})" if near else ""))
        elif shape != expected[name]:
            lines.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
    return lines


def save_world(folder: Path, card: dict[str, Any], modules: Parts, dtype: torch.dtype = torch.float16) -> None:
    """Write a world folder's card and weights, each under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in modules.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(tensors, weights.with_suffix(".tmp"))
    os.replace(weights.with_suffix(".tmp"), weights)
    text = folder / "world.json"
    text.with_suffix(".tmp").write_text(json.dumps(card, indent=2) + "\n")
    os.replace(text.with_suffix(".tmp"), text)
