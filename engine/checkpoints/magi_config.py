"""MAGI-1's config json -> sizes and rollout, strictly: every key known, none missing, none contradicting another.

Values that the published code has one of are checked; what names its files, devices and processes is left alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.published import Guidance, MagiSpec, Staggered

# Every key of a config json: MagiSpec's field, where it is one; how the model is rolled out; what there is one of.
SIZES = {
    "num_layers": "layers",
    "hidden_size": "width",
    "ffn_hidden_size": "ffn",
    "num_attention_heads": "heads",
    "num_query_groups": "kv_heads",
    "kv_channels": "head_width",
    "layernorm_epsilon": "eps",
    "x_rescale_factor": "rescale",
    "half_channel_vae": "doubled",
    "patch_size": "patch",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "caption_channels": "text_width",
    "caption_max_length": "text_tokens",
    "gated_linear_unit": "gated",
}
ROLLOUT = {
    "num_steps": "num_steps",
    "window_size": "window",
    "clean_t": "clean_time",
}
FIXED: dict[str, Any] = {
    "model_name": "videodit_ardf",
    "apply_layernorm_1p": True,
    "t_patch_size": 1,
    "xattn_cond_hidden_ratio": 1.0,
    "cond_gating_ratio": 1.0,
    "scale_factor": 0.18215,
    "temporal_downsample_factor": 4,
}
MODEL = {*SIZES, "cond_hidden_ratio", "params_dtype", "model_name", "apply_layernorm_1p", "t_patch_size"} | {
    "xattn_cond_hidden_ratio",
    "cond_gating_ratio",
}
GUIDANCE = {"cfg_number", "cfg_t_range", "prev_chunk_scales", "text_scales"}
VIDEO = {"num_frames", "video_size_h", "video_size_w", "fps", "chunk_width"}
RUNTIME = {*ROLLOUT, *GUIDANCE, *VIDEO, "noise2clean_kvrange", "clean_chunk_kvrange"} | {
    "scale_factor",
    "temporal_downsample_factor",
}
ENGINE = {"fp8_quant", "distill", "distill_nearly_clean_chunk_threshold", "shortcut_mode"}
# Files, devices and processes of the published code: known, and of no use here.
UNUSED = {
    "model_config": set[str](),
    "runtime_config": {"seed", "load", "t5_pretrained", "t5_device", "vae_pretrained"},
    "engine_config": {"distributed_backend", "distributed_timeout_minutes", "pp_size", "cp_size", "cp_strategy"}
    | {"ulysses_overlap_degree", "kv_offload", "enable_cuda_graph"},
}
SECTIONS = {"model_config": MODEL, "runtime_config": RUNTIME, "engine_config": ENGINE}


@dataclass(frozen=True)
class MagiConfig:
    """What a config json says.

    Attributes:
        spec: sizes, and whether the weights are distilled or quantised.
        rollout: steps, ranges and guidance.
        size: (H, W) in pixels.
        chunk: latent frames of a chunk.
        num_frames, fps: of the video that the published code makes, and of playback.
    """

    spec: MagiSpec
    rollout: Staggered
    size: tuple[int, int] = (720, 720)
    chunk: int = 6
    num_frames: int = 96
    fps: float = 24.0


def read_config(source: str | Path | Mapping[str, Any]) -> MagiConfig:
    """A config json, or what one holds.

    Raises:
        ValueError: it cannot be read; a key is unknown, missing or has a value that there is no code for, here or in
            what was published; entries contradict each other.
    """
    name, data = ("this config", source) if isinstance(source, Mapping) else (str(source), read_json(Path(source)))
    problems = [
        line for section, known in SECTIONS.items() for line in check_section(data.get(section), section, known)
    ]
    problems += [f"unknown section {s!r}" for s in data if s not in SECTIONS]
    if problems:
        raise ValueError(f"{name} is no config of MAGI-1:\n  " + "\n  ".join(problems))
    model, runtime, engine = (data[section] for section in SECTIONS)
    try:
        return config_of(model, runtime, engine)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def read_json(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}: expected the config of MAGI-1, a JSON object")
    return data


def check_section(found: object, section: str, known: set[str]) -> list[str]:
    """What is missing, unknown or unsupported in a section, a line each."""
    if not isinstance(found, Mapping):
        return [f"{section} is missing"]
    lines = [f"{section} lacks {key!r}" for key in sorted(known) if key not in found]
    for key, value in found.items():
        if key not in known | UNUSED[section]:
            near = difflib.get_close_matches(key, known, 1)
            lines.append(f"{section} has an unknown {key!r}" + (f" (nearest: {near[0]!r})" if near else ""))
        elif key in FIXED and value != FIXED[key]:
            lines.append(f"{section} has {key} {value!r}: expected {FIXED[key]!r}")
    return lines


def config_of(model: Mapping[str, Any], runtime: Mapping[str, Any], engine: Mapping[str, Any]) -> MagiConfig:
    """Checked sections as values.

    Raises:
        ValueError: they contradict each other.
    """
    distill, fp8 = engine["distill"], engine["fp8_quant"]
    wanted = 1 if distill or fp8 else 3
    if runtime["cfg_number"] != wanted:
        raise ValueError(
            f"cfg_number {runtime['cfg_number']} with distill {distill}, fp8_quant {fp8}: expected {wanted}"
        )
    condition = model["hidden_size"] * model["cond_hidden_ratio"]
    spec = MagiSpec(
        **{field: model[key] for key, field in SIZES.items()}, condition_width=int(condition), distill=distill, fp8=fp8
    )
    weights = (tuple(runtime[key]) for key in ("cfg_t_range", "prev_chunk_scales", "text_scales"))
    rollout = Staggered(
        **{field: runtime[key] for key, field in ROLLOUT.items()},
        ranges=tuple(runtime["noise2clean_kvrange"]),
        clean_range=runtime["clean_chunk_kvrange"] if runtime["clean_chunk_kvrange"] > 0 else None,
        guidance=Guidance(*weights) if wanted == 3 else None,
        near_clean=engine["distill_nearly_clean_chunk_threshold"],
        shortcut=engine["shortcut_mode"],
    )
    size = (runtime["video_size_h"], runtime["video_size_w"])
    return MagiConfig(spec, rollout, size, runtime["chunk_width"], runtime["num_frames"], runtime["fps"])
