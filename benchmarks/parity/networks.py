"""Recorded single runs of a denoiser: one without a cache (plain Wan2.1), or successive cached ones (Matrix-Game 2).

Both models come from `engine.load`. The first is asked through the view without a cache that training has; the second
is stepped by an engine whose blocks are one pass each, which shows the given latents and commits.

Legend: B worlds, F latent frames, C H W latent, W frames' actions, A their encoding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import engine
from benchmarks.parity.case import Case
from benchmarks.parity.presets import preset_of
from benchmarks.parity.probe import CONTEXTS, Probe, shaped
from benchmarks.parity.worlds import Replay
from engine import Condition, Context, World
from engine.kv.view import CausalView
from engine.schedule import Leg, Pass


def replay_forward(case: Case, device: str = "cpu") -> None:
    """Replay one run over all frames, which all see each other."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = case.write_weights(Path(folder))
        for name, got in forward(case, path, torch.float32, device).items():
            case.compare(name, got)
        if case["out_bf16"]:
            for name, got in forward(case, path, torch.bfloat16, device).items():
                case.compare_bf16(name, got)


def forward(case: Case, path: Path, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """The prediction and the activations on the way, as they were recorded."""
    preset = preset_of(case)
    model = engine.load(path, device, dtype, preset, codec="preview")
    names = [name.removeprefix("dbg.") for name in case["out"] if name.startswith("dbg.")]
    probe = Probe(names, model.denoiser)
    given = {name: x.to(model.device) for name, x in case["in"].items()}
    latents = case.frames_first(given["x"])
    worlds, frames = latents.shape[:2]
    texts, images = (given.get(name, [None] * worlds) for name in ("prompt_embeds", "clip_fea"))
    contexts = [model.denoiser.contextualise(t, i) for t, i in zip(texts, images, strict=True)]
    beside = case.frames_first(given["y"]) if "y" in given else None
    none = latents.new_zeros(worlds, frames, 0)
    condition = Condition(none, none, Context.stack(contexts), beside)
    view = CausalView(preset.policy, model.spec.stream.tokens, block=frames)
    times, positions = given["t"].reshape(worlds, -1), torch.arange(frames, device=model.device)
    flow, _ = model.denoiser(
        latents.to(dtype), times.expand(worlds, frames), positions.expand(worlds, frames), condition, view
    )
    seen = {f"dbg.{name}": shaped(x, case["out"][f"dbg.{name}"]) for name, x in probe.take().items()}
    return {"flow": case.frames_first(flow), **seen}


def replay_calls(case: Case, device: str = "cpu") -> None:
    """Replay successive runs, each over one block and the history that those before it left."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        names = {name.split(".", 2)[2] for name in case["out"] if name.startswith("dbg.call")}
        calls(Replay(case, Path(folder), torch.float32, device), case.compare, names)
        if case["out_bf16"]:
            calls(Replay(case, Path(folder), torch.bfloat16, device), case.compare_bf16)


def calls(run: Replay, compare: Callable[[str, Tensor], None], names: Collection[str] = ()) -> None:
    """Make every call and compare its prediction, and activations of these recorded names."""
    case, sim = run.case, run.sim
    own = [name for name in names if name in CONTEXTS]
    contexts, probe = Probe(own, sim.given.denoiser), Probe(names, run.recorder.denoiser)
    worlds, read = run.open(run.contexts()), contexts.take()
    for call, level in enumerate(case["in"]["t"].tolist()):
        leg = Leg((Pass(level, commit=True),), enters=True)
        sim.schedule = partial(only, leg)
        sim.step(worlds, [run.condition(world, b) for b, world in enumerate(worlds)])
        [(_, flow)] = run.recorder.take()
        compare(f"flow.call{call}", case.frames_first(flow))
        for name, x in {**read, **probe.take()}.items():
            want = case["out"].get(f"dbg.call{call}.{name}")
            if want is not None:
                compare_activation(run, f"dbg.call{call}.{name}", x, want)


def only(leg: Leg, world: World) -> tuple[Leg, ...]:
    """What every step runs."""
    return (leg,)


def compare_activation(run: Replay, name: str, x: Tensor, want: Tensor) -> None:
    """Compare one activation; of embedded keys those frames that some latent frame is shown."""
    if not name.endswith("keyboard_embed"):
        run.case.compare(name, shaped(x, want))
        return
    module = run.sim.spec.action_module
    assert module is not None
    starts = module.frames_per_latent * torch.arange(x.shape[1])[:, None]
    rows = (starts + torch.arange(module.frames)).flatten()
    if int(rows.max()) >= want.shape[1]:
        run.case.compare(name, x)
        return
    note = f"{len(rows.unique())} of {want.shape[1]} rows: no latent frame is shown the others"
    run.case.compare(name, x.flatten(1, 2), want[:, rows], note)
