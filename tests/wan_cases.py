"""Numeric cases of the Wan2.1 family (tests/parity/wan): their files, models built of them, and a plain cache."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engine.conditioning import Condition, Context
from engine.kv.view import Group
from engine.models.matrix_game import IGNORED_SUFFIXES, shown_frames
from engine.models.wan import WanDiT
from engine.published import ActionModule, WanSpec

FOLDER = Path(__file__).parent / "parity" / "wan"


@dataclass
class Case:
    """One file: its metadata and its tensors by group (`weights`, `in`, `out`, `out_bf16`)."""

    info: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]

    def __getitem__(self, group: str) -> dict[str, Tensor]:
        return self.groups.get(group, {})

    def check(self, got: Tensor, name: str, rows: Tensor | slice = slice(None)) -> float:
        """Compare with `out.<name>`, or some rows of its second axis.

        Returns:
            the worst share of the case's tolerance, which has to be at most one.
        """
        want, limit = self["out"][name][:, rows], self.info["tolerance"]
        assert got.shape == want.shape, (name, got.shape, want.shape)
        share = float(((got - want).abs() / (limit["atol"] + limit["rtol"] * want.abs())).max())
        assert share <= 1, f"{self.info['name']}: {name} is off by {share:.2f} of the tolerance"
        return share

    def check_bf16(self, got: Tensor) -> None:
        """Compare with the case's bf16 output by statistics."""
        spread = self.info["bf16"]["kernel_spread"]
        off = (got.float() - next(iter(self["out_bf16"].values())).float()).abs()
        assert off.square().mean().sqrt() <= 3 * spread["rms"]
        assert off.max() <= 4 * spread["max"]


def load_case(path: Path) -> Case:
    groups: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        info = json.loads(file.metadata()["case"])
        for name in file.keys():  # noqa: SIM118
            group, rest = name.split(".", 1)
            groups.setdefault(group, {})[rest] = file.get_tensor(name)
    return Case(info, groups)


def names(kind: str) -> list[str]:
    """Names of all files of a kind."""
    kinds = {}
    for path in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds[path.stem] = json.loads(file.metadata()["case"])["kind"]
    return [name for name, k in kinds.items() if k == kind]


def case(name: str) -> Case:
    return load_case(FOLDER / f"{name}.safetensors")


def spec_of(model: dict[str, Any]) -> WanSpec:
    """The spec of a case's model."""
    return WanSpec(
        width=model["dim"],
        ffn=model["ffn_dim"],
        heads=model["num_heads"],
        layers=model["num_layers"],
        in_channels=model["in_dim"],
        out_channels=model["out_dim"],
        frequencies=model["freq_dim"],
        text_width=model.get("text_dim", 0),
        text_tokens=model.get("text_len", 0),
        image_width=model.get("clip_dim", 0),
        image_tokens=model.get("clip_tokens", 0),
        actions=actions_of(model.get("action_config")),
        patch=model["patch_size"][1],
        rope_base=model["rope_theta"],
        eps=model["eps"],
    )


def actions_of(config: dict[str, Any] | None) -> ActionModule | None:
    if config is None:
        return None
    return ActionModule(
        layers=tuple(config["blocks"]),
        hidden=config["hidden_size"],
        heads=config["heads_num"],
        head_width=config["keyboard_hidden_dim"] // config["heads_num"],
        keyboard=config["keyboard_dim_in"],
        mouse=config["mouse_dim_in"] if config["enable_mouse"] else 0,
        frames_per_latent=config["vae_time_compression_ratio"],
        window=config["windows_size"],
        rope_base=config["rope_theta"],
        rope_width=config["rope_dim_list"][0],
    )


def build_case(case: Case, dtype: torch.dtype = torch.float32, **changes: Any) -> WanDiT:
    """The model of a case: all of its tensors and no others, but those that the published code ignores."""
    model = WanDiT(replace(spec_of(case.info["model"]), **changes))
    prefix = case.info["weights_prefix"]
    weights = {k.removeprefix(prefix): v for k, v in case["weights"].items() if not k.endswith(IGNORED_SUFFIXES)}
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"].flatten(1)
    model.load_state_dict(weights, strict=True)
    return model.to(dtype).eval()


def random_model(spec: WanSpec, seed: int = 0, dtype: torch.dtype = torch.float32) -> WanDiT:
    torch.manual_seed(seed)
    return WanDiT(spec).to(dtype).eval()


def condition_of(contexts: list[Context], actions: Tensor | None = None, beside: Tensor | None = None) -> Condition:
    empty = torch.zeros(len(contexts), 0)
    return Condition(empty if actions is None else actions, empty, Context.stack(contexts), beside)


def action_windows(spec: ActionModule, inputs: dict[str, Tensor], first: int, frames: int) -> Tensor:
    """What latent frames `first` .. are shown of a case's actions, [B, F, W, A]."""
    parts = [inputs["keyboard_cond"], *([inputs["mouse_cond"]] if spec.mouse else [])]
    index = torch.tensor([shown_frames(spec, f) for f in range(first, first + frames)])
    return torch.cat(parts, dim=-1)[:, index]


class Cache:
    """Histories as plain lists: each call of a layer appends its K/V, all its queries see the last frames.

    Args:
        window: most latent frames that a block sees, itself included.
    """

    def __init__(self, tokens: dict[str, int], window: int):
        self.tokens, self.window = tokens, window
        self.kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, stream: str = "self") -> CacheLayer:
        return CacheLayer(self, index, stream)


class CacheLayer:
    """One layer of one stream of a Cache."""

    def __init__(self, cache: Cache, index: int, stream: str):
        self.cache, self.name = cache, (stream, index)

    def extend(self, q, k, v, turn=None) -> list[Group]:
        own, size = (turn(k) if turn else k, v), self.cache.window * self.cache.tokens[self.name[0]]
        old = self.cache.kept.get(self.name, tuple(x[:, :0] for x in own))
        keys, values = (torch.cat([a, b], dim=1)[:, -size:] for a, b in zip(old, own, strict=True))
        self.cache.kept[self.name] = (keys, values)
        return [Group(slice(None), keys, values)]
