"""Two layouts of Wan2.1 denoisers, the original one and diffusers' WanTransformer3DModel -> the original names.

Matrix-Game's action modules have the same names in both. Names only: reads no tensor, knows no sizes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from math import prod
from pathlib import Path

from engine.checkpoints.files import open_tensors
from engine.checkpoints.tensors import Entry, Tensors

MODULES = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
BLOCK_MODULES = {
    **{f"attn1.{theirs}": f"self_attn.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{ours}" for theirs, ours in ATTENTION.items()},
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "norm2": "norm3",  # the one before cross-attention: each numbers the norms in its own order
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
SIGNS = {"original": "blocks.0.self_attn.q.weight", "diffusers": "blocks.0.attn1.to_q.weight"}
PARTS = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def open_denoiser(path: str | Path, prefer: str | tuple[str, ...] | None = None) -> Tensors:
    """A Wan2.1 denoiser's tensors under the names and shapes of ours. Arguments and errors: `open_tensors`."""
    return linear_patches(original_names(open_tensors(path, prefer)))


def original_names(tensors: Tensors) -> Tensors:
    """The tensors of a Wan2.1 denoiser of either layout, under the original names.

    Raises:
        ValueError: neither layout.
    """
    return tensors.renamed(original_name) if layout_of(tensors, tensors.source) == "diffusers" else tensors


def layout_of(names: Collection[str], source: str) -> str:
    """ "original" or "diffusers"."""
    found = [layout for layout, sign in SIGNS.items() if sign in names]
    if len(found) != 1:
        some = ", ".join(list(names)[:4])
        what = "names of both layouts" if found else "no layout of a Wan2.1 denoiser"
        raise ValueError(f"{source} has {what}: it begins with {some}; expected one of {list(SIGNS.values())}")
    return found[0]


def original_name(name: str) -> str:
    """diffusers' name -> the original one; a name that diffusers does not have is left as it is."""
    match = PARTS.fullmatch(name)
    assert match
    block, module, kind = (part or "" for part in match.groups())
    return block + (BLOCK_MODULES if block else MODULES).get(module, module) + kind


def linear_patches(tensors: Tensors) -> Tensors:
    """With the patch embedding's kernel [width, channels, 1, 2, 2] as a linear's weight [width, channels * 4]."""
    name = "patch_embedding.weight"
    entry = tensors.entries.get(name)
    if entry is None or len(entry.shape) == 2:
        return tensors
    return Tensors({**tensors.entries, name: _flat(entry)}, tensors.source)


def _flat(entry: Entry) -> Entry:
    rows, *rest = entry.shape
    return replace(entry, shape=(rows, prod(rest)), read=lambda: entry.read().flatten(1))
