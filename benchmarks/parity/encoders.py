"""Recorded runs of the encoders of prompts (umT5) and pictures (CLIP's image tower).

The weights are written as a published file and opened as the engine's conditioners open it.

Legend: B prompts or pictures, L tokens, D width, h heads.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parity.case import Case
from engine.conditioners.image import ClipVision
from engine.conditioners.tensors import read_tensors
from engine.conditioners.text import TextEncoder

BIAS = re.compile(r"position_bias\.layer(\d+)\.(first|last)_row")


def replay(case: Case, device: str = "cpu") -> None:
    """Replay the recording of an encoder."""
    run = {"text_encoder": of_text, "clip_vision": of_pictures}[case.info["kind"]]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = case.write_weights(Path(folder))
        for name, got in run(case, path, torch.float32, device):
            case.compare(name, got)
        if case["out_bf16"]:
            for name, got in run(case, path, torch.bfloat16, device):
                case.compare_bf16(name, got)


def of_text(case: Case, path: Path, dtype: torch.dtype, device: str) -> Iterator[tuple[str, Tensor]]:
    """Embeddings [B, L, D] of token ids, and rows [h, L] of what layers add to their logits."""
    known = {key: case.info["model"][key] for key in ("max_distance", "eps") if key in case.info["model"]}
    ids, mask = (case["in"][key].to(device) for key in ("ids", "mask"))
    # The recording begins at token ids: no tokenizer takes part.
    encoder = TextEncoder.from_tensors(
        read_tensors(path), text_tokens=ids.shape[1], device=device, dtype=dtype, **known
    )
    yield "prompt_embeds", encoder.encode_ids(ids, mask)
    for name in case["out"]:
        if match := BIAS.fullmatch(name):
            attention = encoder.model.encoder.block[int(match[1])].layer[0].SelfAttention
            [bias] = attention.compute_bias(ids.shape[1], ids.shape[1])
            yield name, bias[:, 0 if match[2] == "first" else -1]


def of_pictures(case: Case, path: Path, dtype: torch.dtype, device: str) -> Iterator[tuple[str, Tensor]]:
    """Pictures as the tower sees them [B, 3, H, W], and its tokens [B, L, D]."""
    vision = ClipVision.load(path, heads=case.info["model"]["num_heads"], device=device, dtype=dtype)
    pictures = case["in"]["image"].to(device)
    if pictures.ndim == 5:  # a clip of one frame, or of several, each a picture
        pictures = pictures.transpose(1, 2).flatten(0, 1)
    yield "pixel_values", vision.prepare(pictures)
    yield "clip_fea", vision.encode(pictures)
