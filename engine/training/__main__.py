"""python -m engine.training --env ID --out FOLDER: from any Gymnasium env with pictures to a world.

Collects episodes, trains the codec, the denoiser and the heads, and writes the world folder. Every stage resumes
from its own checkpoint: run the same command again after a kill. `--help` lists every setting.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from engine.actions import ActionSpec, ContinuousActions, DiscreteActions
from engine.hardware import set_threads
from engine.loading import Parts, check_device, load_parts, read_card
from engine.spec import CodecSpec, DenoiserSpec, KVPolicy, WorldSpec
from engine.training.codec import CodecConfig, train_codec
from engine.training.collect import CollectConfig, collect
from engine.training.data import Shards
from engine.training.denoiser import DenoiserConfig, train_denoiser
from engine.training.export import export, variables_of
from engine.training.heads import HeadsConfig, train_heads
from engine.training.latents import Episodes, actions_of, encode_split


@dataclass(frozen=True)
class TrainConfig:
    """Train a world from a Gymnasium env.

    Attributes:
        out: the world folder to write; checkpoints and sheets go to its subfolder `training`.
        data: where the episodes are or will be; `out/training/data` by default.
        device: cpu, cuda, or auto (CUDA where there is one).
        init: an existing world folder of the same sizes whose weights to start from.
        num_starts: openings of real episodes to ship with the world, for `reset` to draw from.
        start_frames: frames of each; an env whose first frame never varies has more variety in more of them.
        num_steps: denoising passes of a step.
        shift: warps the passes' noise levels towards high noise.
        context_noise: noise level of the cache.
        card: a JSON file whose fields (title, keys, licence, ...) are copied into the world's card; its
            "action_names" name a discrete world's actions, or the numbers of a continuous one's.
    """

    out: Path
    data: Path | None = None
    device: str = "auto"
    init: Path | None = None
    num_starts: int = 64
    start_frames: int = 4
    num_steps: int = 2
    shift: float = 2.0
    context_noise: float = 0.1
    card: Path | None = None
    collect: Annotated[CollectConfig, tyro.conf.arg(name="")] = field(default_factory=CollectConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    world: DenoiserSpec = field(default_factory=DenoiserSpec)
    kv: KVPolicy = field(default_factory=KVPolicy)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)


def read_extra(config: TrainConfig) -> dict:
    """The fields of `--card`, empty without one."""
    if config.card is None:
        return {}
    try:
        return json.loads(config.card.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"--card {config.card} is not JSON: {error}") from None


def named(actions: ActionSpec, names: list[str]) -> ActionSpec:
    """Actions with their names.

    Raises:
        ValueError: there are names, and not one for each discrete action, or for each number of a continuous one.
    """
    if not names:
        return actions
    if isinstance(actions, DiscreteActions) and len(names) == actions.n:
        return replace(actions, names=tuple(names))
    if isinstance(actions, ContinuousActions) and len(names) == actions.width:
        return replace(actions, names=tuple(names))
    raise ValueError(f"action_names {names}: expected one for each of the actions {actions}")


def make_spec(config: TrainConfig, data: Path) -> WorldSpec:
    """The world's spec, from the settings and what the data set says of its env and its frames."""
    shards = Shards(data, "train")
    recorded = shards.metadata
    return WorldSpec(
        name=config.out.name.replace("_", "-"),
        frame=(recorded["config"]["height"], recorded["config"]["width"]),
        fps=float(recorded["fps"] or 30) / recorded["config"]["frame_skip"],
        actions=named(actions_of(data), read_extra(config).get("action_names", [])),
        variables=variables_of(shards),
        codec=CodecSpec(config.codec.channels, config.codec.widths, config.codec.depth),
        denoiser=config.world,
        kv=config.kv,
        num_steps=config.num_steps,
        shift=config.shift,
        context_noise=config.context_noise,
    )


def initial_modules(config: TrainConfig, spec: WorldSpec) -> Parts | None:
    """The modules of `--init`, in fp32, if it was given and fits."""
    if config.init is None:
        return None
    theirs = WorldSpec.from_dict(read_card(config.init)["spec"])
    if sizes_of(theirs) != sizes_of(spec):
        raise ValueError(f"--init {config.init} has other sizes, actions or variables than this run:\n{theirs}\n{spec}")
    return load_parts(config.init, spec)


def sizes_of(spec: WorldSpec) -> WorldSpec:
    """A spec without what its weights have nothing to do with: names, passes and history."""
    actions = spec.actions
    if isinstance(actions, DiscreteActions | ContinuousActions):
        actions = replace(actions, names=())
    return replace(spec, name="", actions=actions, num_steps=1, shift=1.0, kv=KVPolicy())


def train(config: TrainConfig) -> None:
    """Run every stage that is not finished yet, then write the world."""
    set_threads()
    device = check_device(
        "cuda" if config.device == "auto" and torch.cuda.is_available() else config.device.replace("auto", "cpu")
    )
    runs = config.out / "training"
    data = config.data or runs / "data"
    runs.mkdir(parents=True, exist_ok=True)
    if config.data is None or not any(data.glob("train-*.safetensors")):
        collect(config.collect, data)
    spec = make_spec(config, data)
    start = initial_modules(config, spec)
    codec = train_codec(config.codec, data, runs, device, start.codec if start else None)
    splits = {s: Episodes.read(data, s, encode_split(codec, data, s, runs, device)) for s in ("train", "validation")}
    denoiser = train_denoiser(
        spec,
        config.denoiser,
        splits["train"],
        splits["validation"],
        codec,
        runs,
        device,
        start.denoiser if start else None,
    )
    heads = train_heads(
        spec,
        config.heads,
        denoiser,
        splits["train"],
        splits["validation"],
        runs,
        device,
        start.heads if start else None,
    )
    modules = Parts(codec, denoiser, heads)
    export(config.out, spec, modules, data, read_extra(config), config.num_starts, config.start_frames)
    print(f"wrote {config.out}")


def main() -> None:
    config = tyro.cli(TrainConfig, description=__doc__)
    try:
        train(config)
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on from the last checkpoint")


if __name__ == "__main__":
    main()
