"""Published checkpoints in small: random tensors of every Wan2.1 kind under original names, and each layout's files.

The names and shapes stand here a second time, apart from the engine's, so that the one can be tested by the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.published import ActionModule, WanSpec

Tree = dict[str, Tensor]

T2V_1_3B = WanSpec()
T2V_14B = WanSpec(width=5120, ffn=13824, heads=40, layers=40)
I2V_14B = replace(T2V_14B, in_channels=36, image_tokens=257)
UNIVERSAL = WanSpec(in_channels=36, text_tokens=0, image_tokens=257, actions=ActionModule(tuple(range(15))))
GTA = replace(UNIVERSAL, actions=ActionModule(tuple(range(15)), keyboard=2))
TEMPLERUN = replace(UNIVERSAL, actions=ActionModule(tuple(range(15)), keyboard=7, mouse=0))

TINY_T2V = WanSpec(width=80, ffn=96, heads=2, layers=2, frequencies=64, text_width=32, text_tokens=12)
TINY_I2V = replace(TINY_T2V, in_channels=36, image_width=40, image_tokens=257)
TINY_ACTIONS = replace(
    TINY_I2V, text_width=4096, text_tokens=0, image_width=32, actions=ActionModule((0,), hidden=16, heads=2)
)


def linear(name: str, rows: int, columns: int) -> dict[str, tuple]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention_shapes(name: str, width: int, keys: str) -> dict[str, tuple]:
    shapes = {k: s for part in keys.split() for k, s in linear(f"{name}.{part}", width, width).items()}
    return {**shapes, f"{name}.norm_q.weight": (width,), f"{name}.norm_k.weight": (width,)}


def action_shapes(name: str, module: ActionModule, width: int) -> dict[str, tuple]:
    inner, head = module.heads * module.head_width, (module.head_width,)
    shapes = {
        **linear(f"{name}.keyboard_embed.0", module.hidden, module.keyboard),
        **linear(f"{name}.keyboard_embed.2", module.hidden, module.hidden),
        f"{name}.mouse_attn_q.weight": (inner, width),
        f"{name}.keyboard_attn_kv.weight": (2 * inner, module.hidden * module.frames),
        f"{name}.key_attn_q_norm.weight": head,
        f"{name}.key_attn_k_norm.weight": head,
        f"{name}.proj_keyboard.weight": (width, inner),
    }
    if not module.mouse:
        return shapes
    return {
        **shapes,
        **linear(f"{name}.mouse_mlp.0", inner, width + module.mouse * module.frames),
        **linear(f"{name}.mouse_mlp.2", inner, inner),
        **norm(f"{name}.mouse_mlp.3", inner),
        f"{name}.t_qkv.weight": (3 * inner, inner),
        f"{name}.img_attn_q_norm.weight": head,
        f"{name}.img_attn_k_norm.weight": head,
        f"{name}.proj_mouse.weight": (width, inner),
    }


def block_shapes(i: int, spec: WanSpec) -> dict[str, tuple]:
    name, width = f"blocks.{i}", spec.width
    shapes = {
        f"{name}.modulation": (1, 6, width),
        **norm(f"{name}.norm3", width),
        **attention_shapes(f"{name}.self_attn", width, "q k v o"),
        **attention_shapes(f"{name}.cross_attn", width, "q k v o" + " k_img v_img" * spec.separate_image),
        **linear(f"{name}.ffn.0", spec.ffn, width),
        **linear(f"{name}.ffn.2", width, spec.ffn),
    }
    if spec.separate_image:
        shapes[f"{name}.cross_attn.norm_k_img.weight"] = (width,)
    if spec.actions and i in spec.actions.layers:
        shapes |= action_shapes(f"{name}.action_model", spec.actions, width)
    return shapes


def embedding_shapes(spec: WanSpec) -> dict[str, tuple]:
    width, image = spec.width, spec.image_width
    shapes = {
        "patch_embedding.weight": (width, spec.in_channels, 1, spec.patch, spec.patch),
        "patch_embedding.bias": (width,),
        **linear("time_embedding.0", width, spec.frequencies),
        **linear("time_embedding.2", width, width),
        **linear("time_projection.1", 6 * width, width),
    }
    if spec.text_tokens:
        shapes |= linear("text_embedding.0", width, spec.text_width) | linear("text_embedding.2", width, width)
    if spec.image_tokens:
        shapes |= norm("img_emb.proj.0", image) | linear("img_emb.proj.1", image, image)
        shapes |= linear("img_emb.proj.3", width, image) | norm("img_emb.proj.4", width)
    return shapes


def names_and_shapes(spec: WanSpec) -> dict[str, tuple]:
    """Every tensor of a checkpoint of a spec, under its original name and in its published shape."""
    shapes = embedding_shapes(spec)
    for i in range(spec.layers):
        shapes |= block_shapes(i, spec)
    outputs = spec.out_channels * spec.patch**2
    return {**shapes, "head.modulation": (1, 2, spec.width), **linear("head.head", outputs, spec.width)}


def tiny_wan_tensors(spec: WanSpec = TINY_T2V, seed: int = 0) -> Tree:
    """Random fp32 tensors of all original names and shapes: matrices keep the scale of what passes through them,
    norms are near one, nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    return {name: drawn(name, shape, generator) for name, shape in names_and_shapes(spec).items()}


def drawn(name: str, shape: tuple, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    return 0.3 * noise if name.endswith("modulation") else scaled(noise)


def scaled(noise: Tensor) -> Tensor:
    return noise / noise[0].numel() ** 0.5


def prefixed(tensors: Mapping[str, Tensor], prefix: str = "model.") -> Tree:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def with_fsdp_residue(tensors: Mapping[str, Tensor]) -> Tree:
    """Names as an FSDP-wrapped, compiled generator's state dict has them, blocks wrapped one by one."""

    def wrapped(name: str) -> str:
        first, *rest = name.split(".")
        middle = [rest.pop(0), "_fsdp_wrapped_module"] if first == "blocks" else []
        return ".".join(["model", "_fsdp_wrapped_module", "_orig_mod", first, *middle, *rest])

    return {wrapped(name): tensor for name, tensor in tensors.items()}


def write_torch(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, path)
    return path


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_self_forcing(folder: Path, tensors: Tree, ema: Tree | None = None) -> Path:
    """Generator and its average; the average with what FSDP leaves in names."""
    data = {"generator": prefixed(tensors), "generator_ema": with_fsdp_residue(ema or tensors), "step": 600}
    return write_torch(folder / "checkpoints" / "self_forcing_dmd.pt", data)


def write_causvid(folder: Path, tensors: Tree) -> Path:
    return write_torch(folder / "autoregressive_checkpoint" / "model.pt", {"generator": prefixed(tensors)})


def write_longlive(folder: Path, tensors: Tree, lora: Tree, adapter: str = ".default") -> tuple[Path, Path]:
    """Base weights and their adapter; `lora`: see `tiny_lora`."""
    base = write_torch(folder / "models" / "longlive_base.pt", {"generator": prefixed(tensors)})
    return base, write_torch(folder / "models" / "lora.pt", {"generator_lora": peft_names(lora, adapter), "step": 1})


def write_matrix_game(folder: Path, tensors: Tree, mode: str = "base_distilled_model/base_distill") -> Path:
    return write_safetensors(folder / f"{mode}.safetensors", prefixed(tensors))


def write_krea(folder: Path, tensors: Tree) -> Path:
    return write_safetensors(folder / "krea-realtime-video-14b.safetensors", prefixed(tensors))


def write_diffusers(folder: Path, tensors: Tree, shards: int = 2) -> Path:
    """The transformer/ folder of a diffusers pipeline, sharded with an index."""
    renamed = {diffusers_name(name): tensor for name, tensor in tensors.items()}
    stem, names = "diffusion_pytorch_model", list(renamed)
    places = {name: f"{stem}-{1 + i % shards:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        write_safetensors(folder / "transformer" / shard, {n: renamed[n] for n in names if places[n] == shard})
    index = folder / "transformer" / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / "transformer"


TO_DIFFUSERS = (  # tried in order; each replaces a part of the name
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
    ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
    ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
    ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
    ("head.head.", "proj_out."),
    ("head.modulation", "scale_shift_table"),
    ("modulation", "scale_shift_table"),
    ("norm3", "norm2"),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("attn.k_img.", "attn.add_k_proj."),
    ("attn.v_img.", "attn.add_v_proj."),
    ("attn.norm_k_img.", "attn.norm_added_k."),
    ("attn.q.", "attn.to_q."),
    ("attn.k.", "attn.to_k."),
    ("attn.v.", "attn.to_v."),
    ("attn.o.", "attn.to_out.0."),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
)


def diffusers_name(name: str) -> str:
    for ours, theirs in TO_DIFFUSERS:
        name = name.replace(ours, theirs)
    return name


def tiny_lora(tensors: Mapping[str, Tensor], rank: int = 4, seed: int = 0) -> Tree:
    """Factors of every linear inside the blocks, as LongLive's: `<module>.lora_A` [r, in] and `<module>.lora_B`."""
    generator = torch.Generator().manual_seed(seed)
    made: Tree = {}
    for name, weight in tensors.items():
        if name.startswith("blocks.") and weight.ndim == 2:
            module = name.removesuffix(".weight")
            made[f"{module}.lora_A"] = scaled(torch.randn(rank, weight.shape[1], generator=generator))
            made[f"{module}.lora_B"] = 0.3 * scaled(torch.randn(weight.shape[0], rank, generator=generator))
    return made


def peft_names(lora: Mapping[str, Tensor], adapter: str = "") -> Tree:
    return {f"base_model.model.{name}{adapter}.weight": tensor for name, tensor in lora.items()}
