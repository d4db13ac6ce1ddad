"""Recorded runs of MAGI-1's VAE: clips decoded and encoded in tiles, and one decoded whole.

The weights, of one half, are written under their published names and opened as `engine.load` opens them.

Legend: N clips, C T H W latent, frames [T, 3, H, W].
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.parity.case import Case
from engine.codecs.magi_vae import MagiVae
from engine.codecs.magi_vae_tiles import Tiling
from engine.extras import Extras
from engine.opening_magi import open_codec


def replay(case: Case, device: str = "cpu") -> None:
    """Replay every call of a recording."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        vae = open_vae(case, Path(folder), device)
        for call in case.info["calls"]:
            name, made = made_by(vae, call, case["in"], device)
            want = case["out"].get(name)
            case.compare(name, made[0] if want is not None and want.ndim == made.ndim - 1 else made)


def open_vae(case: Case, folder: Path, device: str) -> MagiVae:
    """The VAE of a file."""
    save_file(
        {name: x.contiguous() for name, x in case["weights"].items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(case.info["config"]))
    vae = open_codec(Extras(folders=(folder,)), torch.device(device), torch.float32)
    assert isinstance(vae, MagiVae)
    return vae


def made_by(vae: MagiVae, call: dict[str, Any], given: dict[str, Tensor], device: str) -> tuple[str, Tensor]:
    """The output's name and what we make of a call: frames [N, T, 3, H, W], untiled [N, 3, T, H, W]; or latents."""
    name = call["name"]
    if call["kind"] == "decode_raw":
        return f"{name}.frames", vae.decoder(given[f"{name}.latents"].to(device) / vae.spec.factor)
    vae.tiling = Tiling(call["tile_px"], call["tile_frames"], call["spatial_overlap"], call["temporal_overlap"])
    if call["kind"] == "decode":
        video, _ = vae.signal(given[f"{name}.latents"].to(device).transpose(1, 2))
        return f"{name}.frames", stacked(video)
    if call["kind"] == "encode":
        video = given[f"{name}.video_uint8"].to(device).transpose(1, 2)
        return f"{name}.latents", stacked(vae.encode_signal(video)[0]).transpose(1, 2)
    raise ValueError(f"its call {name!r} has kind {call['kind']!r}: expected decode, decode_raw or encode")


def stacked(made: Tensor | list[Tensor]) -> Tensor:
    """What is made of clips of one length, which is as long for all."""
    return made if isinstance(made, Tensor) else torch.stack(made)
