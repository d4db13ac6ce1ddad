"""A recorded case's metadata -> the preset under which its model is loaded and run, as a user would give one."""

from __future__ import annotations

from typing import Any

from benchmarks.parity.case import Case
from engine import Preset, Rollout
from engine.opening_wan import KEYS

# What no weight tells, and all published models share.
NEVER_TOLD: dict[str, Any] = {"eps": 1e-6, "rope_theta": 10_000, "patch_size": [1, 2, 2], "clip_tokens": 257}
# What stands for a sampler where each run is told its timestep.
ONE_STEP: dict[str, Any] = {"configured_steps": [1000], "shift": 5.0, "warp": False, "context_noise": 0}


def preset_of(case: Case) -> Preset:
    """How the case's model is run."""
    info, layout = case.info, case.info["layout"]
    sampler, cache = info.get("sampler") or ONE_STEP, info.get("cache") or no_cache(layout["latent_frames"])
    window = cache["window_frames"]
    rewrite = ("window" if cache.get("global_sink") else "all") if info.get("prompt_switch") else ""
    check_model(info["model"])
    return Preset(
        Rollout(
            steps=tuple(int(k) for k in sampler["configured_steps"] if k),
            warp=sampler["warp"],
            shift=sampler["shift"],
            context=float(sampler["context_noise"]),
            first_block=1 if layout.get("independent_first_frame") else None,
            relative=cache["rope"] == "window_relative",
            rewrite=rewrite,
            training_steps=sampler.get("num_train_timesteps", 1000),
        ),
        window=None if window < 0 else window,
        sink=cache["sink_frames"],
        block=cache["block_frames"],
        size=(layout["height"] * 8, layout["width"] * 8),
        mode=mode_of(info),
        head_width=info["model"]["head_dim"],
        text_tokens=info["model"].get("text_len") or 512,
    )


def no_cache(frames: int) -> dict[str, Any]:
    """The cache of a single run over so many frames."""
    return {"window_frames": -1, "sink_frames": 0, "block_frames": frames, "rope": "absolute"}


def check_model(model: dict[str, Any]) -> None:
    """Raise ValueError if a number that no weight tells is another than all published models have."""
    for name, known in NEVER_TOLD.items():
        if model.get(name, known) not in (known, None):
            raise ValueError(f"its model has {name} {model[name]}: no weight tells that, and the loader takes {known}")


def mode_of(info: dict[str, Any]) -> str:
    """Which Matrix-Game the case is of, as it says itself, or by the number of keys; "" where it is none."""
    module = info["model"].get("action_config")
    if not module:
        return ""
    by_keys = {len(keys): mode for mode, keys in KEYS.items()}
    mode = info.get("mode")
    return mode if mode in KEYS else by_keys.get(module["keyboard_dim_in"], "")
