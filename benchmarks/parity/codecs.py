"""Recorded runs of the Wan2.1 VAE: clips decoded whole and in streamed blocks, clips encoded.

The weights, of one half, are written as the published file and opened as `engine.load` opens it.

Legend: B worlds, F latent frames, T frames, C h w latent, H W pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parity.case import Case
from engine.checkpoints import open_tensors
from engine.codecs.wan_vae import WanVae
from engine.codecs.wan_vae_layout import vae_of


def replay(case: Case, device: str = "cpu") -> None:
    """Replay a decoder's or an encoder's recording."""
    run = {"vae_decode": decoded, "vae_encode": encoded}[case.info["kind"]]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "Wan2.1_VAE.pth"
        torch.save(case["weights"], path)
        for name, video in run(case, open_vae(case, path, torch.float32, device)):
            case.compare(name, case.frames_first(video))
        if case["out_bf16"]:
            for name, video in run(case, open_vae(case, path, torch.bfloat16, device)):
                case.compare_bf16(name, case.frames_first(video))


def open_vae(case: Case, path: Path, dtype: torch.dtype, device: str) -> WanVae:
    """The VAE of a file, with the latents' statistics of the case."""
    given = case["in"]
    statistics = {key: given[f"latent_{key}"].tolist() for key in ("mean", "std") if f"latent_{key}" in given}
    vae = vae_of(dict(open_tensors(path)), **statistics)
    return vae.to(device, dtype).eval().requires_grad_(False)


def decoded(case: Case, vae: WanVae) -> Iterator[tuple[str, Tensor]]:
    """Video [B, T, 3, H, W] of the whole clip, and of its blocks one after another."""
    latents = case.frames_first(case["in"]["z"]).to(vae.conv2.weight.device)
    yield "video", joined(vae.signal(latents)[0])
    states = None
    for i, block in enumerate(latents.split(case.info.get("blocks") or [latents.shape[1]], dim=1)):
        video, states = vae.signal(block, states)
        yield f"video.block{i}", joined(video)


def encoded(case: Case, vae: WanVae) -> Iterator[tuple[str, Tensor]]:
    """Latents [B, F, C, h, w] of every clip."""
    for name in case["out"].keys() | case["out_bf16"].keys():
        if name in case["in"]:
            clip = case.frames_first(case["in"][name]).to(vae.conv1.weight.device)
            yield name, joined(vae.encode_signal(clip)[0])


def joined(made: Tensor | list[Tensor]) -> Tensor:
    """What is made of worlds of one age, which is as long for all."""
    return made if isinstance(made, Tensor) else torch.stack(made)
