"""Recorded formulas, which need no weights: timestep features, rotary positions, norms; noise levels and solver steps.

Every recorded name says which formula at which size; a name that none here has is left over, which is a miss.

Legend: N clips, F latent frames, B solver steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.parity.case import Case
from engine.models.rotary import Rotary, TurnsOf, grid_turns, time_turns
from engine.models.wan_layers import RMSNorm, sinusoid
from engine.published import Rollout
from engine.schedule import mix_rounded, shifted, sigma_at, timesteps, to_clean

EPS = 1e-6
ROPE_BASE = 10_000.0
NUMBER = r"(\d+(?:\.\d+)?)"


def replay(case: Case, device: str = "cpu") -> None:
    """Compute every output that is recorded, by its name."""
    with torch.inference_mode():
        for name in case["out"]:
            for pattern, compute in FORMULAS[case.info["kind"]].items():
                if match := re.fullmatch(pattern, name):
                    case.compare(name, compute(case, device, *match.groups()))


def given(case: Case, device: str, name: str) -> Tensor:
    return case["in"][name].to(device)


def features_of_time(case: Case, device: str, width: str) -> Tensor:
    """Cosines and sines of timesteps."""
    return sinusoid(given(case, device, "time.t"), int(width))


def turned(x: Tensor, start: int, frames: int, turns: TurnsOf, dtype: torch.dtype) -> Tensor:
    """Queries or keys [N, F S, h, d] of so many frames, turned by their positions from `start` on."""
    positions = torch.arange(start, start + frames, device=x.device)
    return Rotary(positions.expand(len(x), frames), turns, dtype)(x)


def rotary_in_three_axes(case: Case, device: str, width: str, start: str) -> Tensor:
    """The denoiser's rotary: the angles of frames, rows and columns, in float64."""
    frames, *grid = case.info["grid"]
    base = case.info.get("rope_theta", ROPE_BASE)
    turns = partial(grid_turns, grid=tuple(grid), width=int(width), base=base)
    return turned(given(case, device, f"rope.hd{width}.x"), int(start), frames, turns, torch.float64)


def rotary_of_actions(case: Case, device: str, start: str, part: str) -> Tensor:
    """The action module's rotary: of a head's channels the first ones turn with time, in float32."""
    known, x = case.info["action_rope"], given(case, device, f"action_rope.{part}")
    turns = partial(time_turns, width=known["head_dim"], turning=known["dims"][0], base=known["theta"])
    return turned(x, int(start), x.shape[1], turns, torch.float32)


def norm(case: Case, device: str, which: str, rounded: str | None) -> Tensor:
    """RMS norm, or layer norm with or without parameters, in float32 or of bfloat16 inputs."""
    dtype, eps = torch.bfloat16 if rounded else torch.float32, case.info.get("eps", EPS)
    x = given(case, device, "norm.x").to(dtype)
    if which == "rms":
        weight = given(case, device, "norm.rms_w").to(dtype)
        module = RMSNorm(len(weight), eps).to(device, dtype)
        module.load_state_dict({"weight": weight})
        return module(x)
    keys = ("norm.ln_w", "norm.ln_b") if which == "ln_affine" else ()
    return F.layer_norm(x, x.shape[-1:], *(given(case, device, key).to(dtype) for key in keys), eps=eps)


def table(case: Case, device: str, shift: str, which: str) -> Tensor:
    """Noise levels, or timesteps, of all training steps."""
    rollout = rollout_of(case, float(shift))
    return shifted(rollout) * (rollout.training_steps if which == "timesteps" else 1)


def steps_of_preset(case: Case, device: str, name: str, which: str) -> Tensor:
    """The timesteps that a preset ends up with, or their noise levels."""
    known = case.info["presets"][name]
    steps = tuple(int(k) for k in known["steps"] if k)  # a trailing 0 stands for the clean block
    rollout = rollout_of(case, known["shift"], steps=steps, warp=known["warp"])
    told = timesteps(rollout)
    return torch.tensor(told if which == "timesteps" else [sigma_at(t, rollout) for t in told])


def solver_step(case: Case, device: str, shift: str, which: str, rounded: str | None) -> Tensor:
    """x0 of every row's flow at its own timestep; the same noised again; or the noise levels used."""
    rollout, dtype = rollout_of(case, float(shift)), torch.bfloat16 if rounded else torch.float32
    times = case["in"][f"step.shift{shift}.t"]
    sigmas = [sigma_at(t, rollout) for t in times.flatten().tolist()]
    if which == "sigmas":
        return torch.tensor(sigmas).view(times.shape)
    shape = case["in"][f"step.shift{shift}.x"].shape
    x, flow, noise = (
        given(case, device, f"step.shift{shift}.{key}").to(dtype).float().reshape(len(sigmas), -1)
        for key in ("x", "flow", "noise")
    )
    clean = torch.stack([to_clean(s, dtype)(x[b], flow[b]) for b, s in enumerate(sigmas)])
    if which == "renoised":
        clean = torch.stack([mix_rounded(s, dtype)(clean[b], noise[b]) for b, s in enumerate(sigmas)])
    return clean.view(shape)


def rollout_of(case: Case, shift: float, **more) -> Rollout:
    return Rollout(shift=shift, training_steps=case.info.get("num_train_timesteps", 1000), **more)


FORMULAS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "primitives": {
        r"time\.sinusoid(\d+)": features_of_time,
        r"rope\.hd(\d+)\.start(\d+)": rotary_in_three_axes,
        r"action_rope\.start(\d+)\.([qk])": rotary_of_actions,
        r"norm\.(rms|ln|ln_affine)(_bf16)?": norm,
    },
    "scheduler": {
        rf"table\.shift{NUMBER}\.(sigmas|timesteps)": table,
        r"preset\.(.+)\.(sigmas|timesteps)": steps_of_preset,
        rf"step\.shift{NUMBER}\.(x0|renoised|sigmas)(_bf16)?": solver_step,
    },
}
