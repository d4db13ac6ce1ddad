"""MAGI-1's published layout: safetensors, sharded or not, and a config json -> a MagiSpec and a filled MagiDiT.

Sizes are read from shapes; what no weight tells (rescaling, distillation, the steps) from the config, which may not
contradict them. The published code skips what it does not find and only prints that; here every tensor is used once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.files import open_tensors
from engine.checkpoints.filling import fill
from engine.checkpoints.magi_config import MagiConfig, read_config, read_json
from engine.checkpoints.places import locate
from engine.checkpoints.tensors import Entry, Shape, Tensors
from engine.fp8 import E4M3, TensorLinear
from engine.hardware import default_dtype
from engine.models.magi import MagiDiT
from engine.models.magi_layers import island
from engine.published import MagiSpec

FOLDER = "inference_weight"  # with .fp8 and .distill behind it, as the weights are
SCALES = ("weight_scale", "input_scale", "smooth_scale")


def spec_of_shapes(shapes: Mapping[str, Shape], distill: bool) -> MagiSpec:
    """Sizes of a denoiser by its shapes, and by what those of the published models imply.

    Raises:
        ValueError: a weight that tells a size is missing or odd.
    """
    first = "videodit_blocks.layers.0."
    width, channels, _, patch = size_of(shapes, "x_embedder.weight", 5)[:4]
    (head_width,) = size_of(shapes, f"{first}self_attention.q_layernorm.weight", 1)
    condition, frequencies = size_of(shapes, "t_embedder.mlp.0.weight", 2)
    text_tokens, text_width = size_of(shapes, "y_embedder.null_caption_embedding", 2)
    rows, _ = size_of(shapes, f"{first}mlp.linear_fc1.weight", 2)
    _, ffn = size_of(shapes, f"{first}mlp.linear_fc2.weight", 2)
    doubled = channels == 32
    return MagiSpec(
        width=width,
        ffn=ffn,
        layers=1 + max(int(i) for name in shapes for i in re.findall(r"^videodit_blocks\.layers\.(\d+)\.", name)),
        heads=size_of(shapes, f"{first}self_attention.linear_qkv.q.weight", 2)[0] // head_width,
        kv_heads=size_of(shapes, f"{first}self_attention.linear_qkv.k.weight", 2)[0] // head_width,
        head_width=head_width,
        condition_width=condition,
        in_channels=channels,
        out_channels=size_of(shapes, "final_linear.linear.weight", 2)[0] // patch**2,
        doubled=doubled,
        rescale=0.1 if doubled else 1.0,
        gated=rows == 2 * ffn,
        text_width=text_width,
        text_tokens=text_tokens,
        frequencies=frequencies,
        distill=distill,
        fp8=any(name.endswith(".weight_scale") for name in shapes),
        patch=patch,
    )


def size_of(shapes: Mapping[str, Shape], name: str, axes: int) -> Shape:
    if name not in shapes:
        near = difflib.get_close_matches(name, shapes, 1)
        raise ValueError(f"no {name}: not the weights of MAGI-1" + (f" (nearest: {near[0]})" if near else ""))
    if len(shapes[name]) != axes:
        raise ValueError(f"{name} is {list(shapes[name])}: expected {axes} axes")
    return shapes[name]


def load_magi(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | MagiConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    distill: bool | None = None,
) -> tuple[MagiSpec, MagiDiT]:
    """A published denoiser, ready to run.

    Args:
        source: a folder or file of weights, or a hub id with a path (see `open_tensors`). Of a folder that holds
            inference_weight, inference_weight.distill, ... the one that the config asks for.
        config: its config json; by default the one beside the weights, if there is one. Without any, sizes are those
            of the weights, and the rest as published for such sizes.
        dtype: precision of what the published code runs in bf16; the device's fast one by default.
        distill: whether the weights are distilled, where neither a config nor the folder's name tells.

    Raises:
        ValueError: weights are missing, left over or of another shape or type; the config does not fit them.
    """
    said = find_config(source, config)
    path = locate(weights_folder(source, said))
    tensors = open_tensors(path)
    told = distilled(path, said, distill)
    spec = spec_of_shapes(tensors.shapes, told)
    if said:
        spec = agreed(said.spec, spec, str(path))
    with torch.device("meta"):
        module = MagiDiT(spec)
    check_types(spec, tensors)
    placed = in_precision(flat_patches(tensors), dtype or default_dtype(torch.device(device)))
    module = fill(module, placed, None, device).eval().requires_grad_(False)
    check_scales(module, str(path))
    return spec, module


def find_config(source: str | Path, config: str | Path | Mapping[str, Any] | MagiConfig | None) -> MagiConfig | None:
    """The config that was given, or the one that lies with the weights."""
    if config is not None:
        return config if isinstance(config, MagiConfig) else read_config(config)
    here = Path(source)
    beside = [here, here.parent] if here.is_dir() else [here.parent]
    found = [p for folder in beside for p in sorted(folder.glob("*config.json")) if "model_config" in read_json(p)]
    if len(found) > 1 and found[0].parent == found[1].parent:
        raise ValueError(f"{found[0].parent} holds several configs, {found[0].name} and {found[1].name}: give config=")
    return read_config(found[0]) if found else None


def weights_folder(source: str | Path, config: MagiConfig | None) -> str | Path:
    """Of a folder with several kinds of weights, the kind that the config asks for."""
    here = Path(source)
    kinds = sorted(p.name for p in here.glob(f"{FOLDER}*")) if here.is_dir() else []
    if here.name.startswith(FOLDER):
        kinds, here = [here.name], here.parent
    if config is None or not kinds:
        return source
    wanted = FOLDER + ".fp8" * config.spec.fp8 + ".distill" * config.spec.distill
    if wanted not in kinds:
        raise ValueError(f"the config asks for {wanted}, and {here} holds {', '.join(kinds)}: give the other config")
    return here / wanted


def distilled(path: Path, config: MagiConfig | None, given: bool | None) -> bool:
    """Whether weights are distilled, by what was said, their config and their folder, which have to agree."""
    folder = path.parent.name
    named = folder.endswith(".distill") if folder.startswith(FOLDER) else None
    said = {"distill=": given, "the config": config.spec.distill if config else None, f"the folder {folder}": named}
    told = {who: value for who, value in said.items() if value is not None}
    if not told:
        raise ValueError(f"no weight tells whether {path} is distilled: give its config json, or distill=")
    if len(set(told.values())) > 1:
        lines = ", ".join(f"{who} says {value}" for who, value in told.items())
        raise ValueError(f"{path} is distilled or not: {lines}")
    return next(iter(told.values()))


def agreed(said: MagiSpec, found: MagiSpec, source: str) -> MagiSpec:
    """The config's spec, where shapes do not contradict it."""
    told = replace(found, doubled=said.doubled, rescale=said.rescale, eps=said.eps)
    names = [name for name in vars(said) if getattr(said, name) != getattr(told, name)]
    if names:
        lines = [f"{name}: the config says {getattr(said, name)}, the weights {getattr(told, name)}" for name in names]
        raise ValueError(f"{source} does not fit its config:\n  " + "\n  ".join(lines))
    return said


def flat_patches(tensors: Tensors) -> Tensors:
    """With the patch embedding's kernel [width, channels, 1, 2, 2] as a linear's weight."""
    name = "x_embedder.weight"
    entry = tensors.entries[name]
    rows, *rest = entry.shape
    flat = replace(entry, shape=(rows, prod(rest)), read=lambda: entry.read().flatten(1))
    return Tensors({**tensors.entries, name: flat}, tensors.source)


def in_precision(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """As the model runs them: fp8 weights as stored, scales and the published islands in float32, others in `dtype`."""
    return Tensors({name: cast(name, entry, dtype) for name, entry in tensors.entries.items()}, tensors.source)


def cast(name: str, entry: Entry, dtype: torch.dtype) -> Entry:
    if entry.dtype == E4M3:
        return entry
    wide = island(name) or name.endswith(SCALES)
    target = torch.float32 if wide else dtype
    return replace(entry, dtype=target, read=lambda: entry.read().to(target))


def check_types(spec: MagiSpec, tensors: Tensors) -> None:
    """Raises ValueError unless just the quantised layers' weights are fp8."""
    scaled = {name.removesuffix("_scale") for name in tensors if name.endswith(".weight_scale")}
    odd = [name for name, dtype in tensors.dtypes.items() if (dtype == E4M3) != (name in scaled)]
    if odd:
        lines = [f"{name} is {tensors.dtypes[name]}" for name in odd[:20]]
        raise ValueError(
            f"{tensors.source}: expected float8_e4m3fn of weights that have a weight_scale, and of no others:\n  "
            + "\n  ".join(lines)
        )


def check_scales(module: MagiDiT, source: str) -> None:
    """Raises ValueError unless inputs have one scale where the product takes one."""
    for name, part in module.named_modules():
        if isinstance(part, TensorLinear) and bool((part.input_scale != part.input_scale[0]).any()):
            raise ValueError(f"{source}: {name}.input_scale differs between inputs: expected one number for all")
