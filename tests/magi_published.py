"""MAGI-1 checkpoints in small: random tensors under the published names, the shards and config json around them.

Names, shapes and types stand here a second time, apart from the engine's, so that the one can be tested by the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.published import MagiSpec

Shapes = dict[str, tuple[int, ...]]
MAGI_4_5B = MagiSpec()
MAGI_24B = MagiSpec(
    width=6144,
    ffn=16384,
    layers=48,
    heads=48,
    condition_width=1536,
    in_channels=32,
    out_channels=32,
    doubled=True,
    rescale=0.1,
    gated=True,
)
SMALL: dict[str, Any] = {
    "width": 128,
    "layers": 3,
    "heads": 8,
    "head_width": 16,
    "condition_width": 32,
    "text_width": 24,
}
TINY = MagiSpec(**SMALL, ffn=192, kv_heads=2)
TINY_DISTILL = MagiSpec(**SMALL, ffn=192, kv_heads=2, distill=True)
TINY_QUANT = MagiSpec(**SMALL, ffn=192, kv_heads=2, distill=True, fp8=True)
TINY_24B = MagiSpec(
    **SMALL, ffn=160, kv_heads=4, in_channels=32, out_channels=32, doubled=True, rescale=0.1, gated=True
)


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def layer_shapes(name: str, spec: MagiSpec) -> Shapes:
    h, q, kv, d = spec.width, spec.heads * spec.head_width, spec.kv_heads * spec.head_width, spec.head_width
    attention = f"{name}.self_attention"
    return {
        **linear(f"{name}.ada_modulate_layer.proj.0", 2 * h, spec.condition_width),
        **norm(f"{attention}.linear_qkv.layer_norm", h),
        f"{attention}.linear_qkv.q.weight": (q, h),
        f"{attention}.linear_qkv.qx.weight": (q, h),
        f"{attention}.linear_qkv.k.weight": (kv, h),
        f"{attention}.linear_qkv.v.weight": (kv, h),
        f"{attention}.linear_kv_xattn.weight": (2 * kv, h),
        **norm(f"{attention}.q_layernorm", d),
        **norm(f"{attention}.k_layernorm", d),
        **norm(f"{attention}.q_layernorm_xattn", d),
        **norm(f"{attention}.k_layernorm_xattn", d),
        f"{attention}.linear_proj.weight": (h, 2 * q),
        **norm(f"{name}.self_attn_post_norm", h),
        **norm(f"{name}.mlp.layer_norm", h),
        **norm(f"{name}.mlp_post_norm", h),
        f"{name}.mlp.linear_fc1.weight": (spec.ffn * (2 if spec.gated else 1), h),
        f"{name}.mlp.linear_fc2.weight": (h, spec.ffn),
    }


def magi_shapes(spec: MagiSpec) -> Shapes:
    """Every tensor of a checkpoint that is not quantised."""
    h, c = spec.width, spec.condition_width
    shapes = {
        "x_embedder.weight": (h, spec.in_channels, 1, 2, 2),
        **linear("t_embedder.mlp.0", c, 256),
        **linear("t_embedder.mlp.2", c, c),
        "y_embedder.null_caption_embedding": (spec.text_tokens, spec.text_width),
        **linear("y_embedder.y_proj_xattn.0", h, spec.text_width),
        **linear("y_embedder.y_proj_adaln.0", c, spec.text_width),
        "rope.bands": (spec.head_width // 8,),
        "final_linear.linear.weight": (4 * spec.out_channels, h),
        **norm("videodit_blocks.final_layernorm", h),
    }
    for i in range(spec.layers):
        shapes |= layer_shapes(f"videodit_blocks.layers.{i}", spec)
    return shapes


TENSOR = ("q", "qx", "k", "v", "linear_fc1")
SMOOTH = ("linear_proj", "linear_fc2")


def kind_of(name: str, spec: MagiSpec) -> str:
    """ "T" or "S" of a quantised weight, "" of any other tensor."""
    parts = name.split(".")
    if not spec.fp8 or parts[0] != "videodit_blocks" or parts[1] != "layers" or parts[-1] != "weight":
        return ""
    if not 0 < int(parts[2]) < spec.layers - 1:
        return ""
    return "T" if parts[-2] in TENSOR else "S" if parts[-2] in SMOOTH else ""


def magi_weights(spec: MagiSpec, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under the published names; of a quantised spec, quantised."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in magi_shapes(spec).items():
        x = torch.randn(shape, generator=random) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        x = 10_000.0 ** -(torch.arange(*shape) / shape[0]) if name == "rope.bands" else x
        kind = kind_of(name, spec)
        weights |= quantised(name, x, kind) if kind else {name: x.to(dtype)}
    return weights


def quantised(name: str, weight: Tensor, kind: str) -> dict[str, Tensor]:
    """One weight [out, in] as the fp8 checkpoints hold it."""
    scale = weight.abs().max() / 448
    made = {name: (weight / scale).to(torch.float8_e4m3fn)[None], f"{name}_scale": scale.reshape(1)}
    base = name.removesuffix(".weight")
    if kind == "T":
        return made | {f"{base}.input_scale": torch.full((weight.shape[1],), 0.02)}
    smooth = 0.01 + 0.02 * torch.rand(1, weight.shape[1], generator=torch.Generator().manual_seed(1))
    return made | {f"{base}.input_scale": torch.ones(1), f"{base}.smooth_scale": smooth}


def config_json(spec: MagiSpec, **runtime: Any) -> dict[str, dict[str, Any]]:
    """The config that is published with such weights."""
    model = {
        "model_name": "videodit_ardf",
        "num_layers": spec.layers,
        "hidden_size": spec.width,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "num_query_groups": spec.kv_heads,
        "kv_channels": spec.head_width,
        "layernorm_epsilon": 1e-06,
        "apply_layernorm_1p": True,
        "x_rescale_factor": spec.rescale,
        "half_channel_vae": spec.doubled,
        "params_dtype": "torch.bfloat16",
        "patch_size": 2,
        "t_patch_size": 1,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "cond_hidden_ratio": 0.25,
        "caption_channels": spec.text_width,
        "caption_max_length": spec.text_tokens,
        "xattn_cond_hidden_ratio": 1.0,
        "cond_gating_ratio": 1.0,
        "gated_linear_unit": spec.gated,
    }
    run = {
        "cfg_number": 1 if spec.distill or spec.fp8 else 3,
        "cfg_t_range": [0.0, 0.0217, 0.1, 0.3, 0.999],
        "prev_chunk_scales": [1.5, 1.5, 1.5, 1.0, 1.0],
        "text_scales": [7.5, 7.5, 7.5, 0.0, 0.0],
        "noise2clean_kvrange": [5, 4, 3, 2],
        "clean_chunk_kvrange": 1,
        "clean_t": 0.9999,
        "seed": 1234,
        "num_frames": 96,
        "video_size_h": 32,
        "video_size_w": 48,
        "num_steps": 16,
        "window_size": 4,
        "fps": 24,
        "chunk_width": 6,
        "load": "./downloads/weights",
        "t5_pretrained": "./downloads/t5_pretrained",
        "t5_device": "cpu",
        "vae_pretrained": "./downloads/vae",
        "scale_factor": 0.18215,
        "temporal_downsample_factor": 4,
    }
    engine = {
        "distributed_backend": "nccl",
        "distributed_timeout_minutes": 15,
        "pp_size": 1,
        "cp_size": 1,
        "cp_strategy": "cp_ulysses",
        "ulysses_overlap_degree": 1,
        "fp8_quant": spec.fp8,
        "distill_nearly_clean_chunk_threshold": 0.3,
        "shortcut_mode": "8,16,16",
        "distill": spec.distill,
        "kv_offload": True,
        "enable_cuda_graph": False,
    }
    return {"model_config": model, "runtime_config": {**run, **runtime}, "engine_config": engine}


def write_shards(folder: Path, weights: dict[str, Tensor], shards: int = 2) -> None:
    """model.safetensors, or an index of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return
    names = sorted(weights)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({name: weights[name] for name in names[i::shards]}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_magi(folder: Path, spec: MagiSpec, shards: int = 2, seed: int = 0, config: bool = True) -> Path:
    """A variant's folder: its weights in the subfolder of their kind, and its config json. Returns the folder."""
    kind = "inference_weight" + ".fp8" * spec.fp8 + ".distill" * spec.distill
    write_shards(folder / kind, magi_weights(spec, seed, torch.bfloat16), shards)
    if config:
        (folder / "config.json").write_text(json.dumps(config_json(spec)))
    return folder
