"""Numeric cases of MAGI-1 (tests/parity/magi): their files, models built of them, and a view of plain key ranges.

Latents are [N, C, T, H, W] in the files and [N, F, C, H, W] in the engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.parity.magi_view import RangesView
from engine.checkpoints.magi_config import read_config
from engine.conditioning import Condition, Context
from engine.models.magi import MagiDiT
from engine.models.magi_layers import island
from engine.published import MagiSpec

FOLDER = Path(__file__).parent / "parity" / "magi"
Ranges = list[tuple[int, int]]


@dataclass
class Case:
    """One file: its metadata and its tensors by group (`weights`, `in`, `out`)."""

    info: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]

    def __getitem__(self, group: str) -> dict[str, Tensor]:
        return self.groups.get(group, {})

    def check(self, got: Tensor, name: str) -> float:
        """Compare with `out.<name>`.

        Returns:
            the largest difference as a share of the case's tolerance, which has to be at most one.
        """
        want, limit = self["out"][name], self.info["tolerance"]
        assert got.shape == want.shape, (name, got.shape, want.shape)
        allowed = limit["atol"] + limit["rel"] * float(want.float().abs().max())
        share = float((got.float() - want.float()).abs().max()) / allowed
        assert share <= 1, f"{self.info['case']}: {name} is off by {share:.2f} of the tolerance"
        return share


def case(name: str) -> Case:
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        info = json.loads(file.metadata()["json"])
        for key in file.keys():  # noqa: SIM118
            group, rest = key.split(".", 1)
            groups.setdefault(group, {})[rest] = file.get_tensor(key)
    return Case(info, groups)


def names(kind: str) -> list[str]:
    """Names of all files whose name begins so."""
    return sorted(path.stem for path in FOLDER.glob(f"{kind}*.safetensors"))


def spec_of(case: Case) -> MagiSpec:
    return read_config(case.info["config"]).spec


def build_case(case: Case) -> MagiDiT:
    """The model of a case, in its precision: all of its tensors and no others."""
    config = case.info["config"]["model_config"]
    dtype = {"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16}[config["params_dtype"]]
    model = MagiDiT(spec_of(case))
    weights = {n: x.to(torch.float32 if island(n) else dtype) for n, x in case["weights"].items()}
    weights["x_embedder.weight"] = weights["x_embedder.weight"].flatten(1)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def contexts_of(model: MagiDiT, text: Tensor, mask: Tensor) -> tuple[Context, ...]:
    """One context a chunk, of embeddings [c, 1, T, D] and their masks [c, 1, T]."""
    return tuple(model.contextualise(rows[0][keep[0] > 0]) for rows, keep in zip(text, mask, strict=True))


def run(
    model: MagiDiT,
    latents: Tensor,
    times: Tensor,
    chunks: tuple[tuple[Context, ...], ...],
    view: RangesView,
    dropped: bool = False,
    step_size: float | None = None,
    first: int = 0,
) -> Tensor:
    """The prediction [N, C, T, H, W] of latents [N, C, T, H, W] at times of chunks [N, c], from frame `first` on."""
    n, frames = latents.shape[0], latents.shape[2]
    condition = Condition(
        latents.new_zeros(n, frames, 0),
        latents.new_zeros(n, frames, 0),
        chunks=chunks,
        dropped=torch.full(times.shape, dropped, device=latents.device),
        step_size=step_size,
    )
    positions = torch.arange(first, first + frames, device=latents.device).expand(n, -1)
    width = frames // times.shape[1]
    out, _ = model(latents.transpose(1, 2), times.repeat_interleave(width, 1), positions, condition, view)
    return out.transpose(1, 2)
