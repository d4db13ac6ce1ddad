"""Recorded rollouts of Self Forcing, CausVid, LongLive and Matrix-Game 2, replayed by the engine.

The case's weights are written as a checkpoint and opened with `engine.load`; worlds get the recorded noise, prompts,
images and actions; every step, prediction and cached page is compared.

Legend: B worlds, F latent frames, C H W latent, S tokens of a frame, h heads, d head width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import engine
from benchmarks.parity.case import Case
from engine import Condition, Context, Engine, GivenNoise, Preset, Rollout, Start, World
from engine.schedule import sigma_at, timesteps


def preset_of(case: Case) -> Preset:
    """How the case's model is run."""
    info, cache, layout = case.info, case.info["cache"], case.info["layout"]
    sampler = info.get("sampler") or {"configured_steps": [1000], "shift": 5.0, "warp": False, "context_noise": 0}
    window = cache["window_frames"]
    rewrite = {True: "window", False: "all", None: ""}[cache.get("global_sink")]
    return Preset(
        Rollout(
            steps=tuple(k for k in sampler["configured_steps"] if k),
            warp=sampler["warp"],
            shift=sampler["shift"],
            context=float(sampler["context_noise"]),
            first_block=layout["initial_frames"] if layout.get("independent_first_frame") else None,
            relative=cache["rope"] == "window_relative",
            rewrite=rewrite,
        ),
        window=None if window < 0 else window,
        sink=cache["sink_frames"],
        block=cache["block_frames"],
        size=(layout["height"] * 8, layout["width"] * 8),
        mode=info.get("mode", "") if info["model"].get("action_config") else "",
        head_width=info["model"]["head_dim"],
        text_tokens=info["model"].get("text_len", 512),
    )


class Recorder(torch.nn.Module):
    """A denoiser that keeps what it was shown and what it predicted."""

    def __init__(self, denoiser: torch.nn.Module):
        super().__init__()
        self.denoiser, self.calls = denoiser, list[tuple[Tensor, Tensor]]()

    def forward(self, latents: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        prediction, features = self.denoiser(latents, *rest)
        self.calls.append((latents, prediction.float()))
        return prediction, features

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class Replay:
    """One case in an engine: B worlds, their blocks, and what a denoiser was asked on the way."""

    def __init__(self, case: Case, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        self.case, self.info = case, case.info
        lora = folder / "lora.safetensors" if case["lora"] else None
        alpha = (case.info.get("lora") or {}).get("alpha")
        path = case.write_weights(folder)
        self.preset = preset_of(case)
        extras: dict[str, Any] = {"lora": lora, "lora_alpha": alpha} if lora else {}
        model = engine.load(path, device, dtype, self.preset, codec="preview", **extras)
        self.video_first = self.info["latent_layout"] == "BCFHW"
        self.count = self.info["layout"]["batch"]
        self.sim = Engine(model, max_worlds=self.count)
        self.recorder = Recorder(self.sim.runner.model.denoiser)
        self.sim.runner.model = replace(self.sim.runner.model, denoiser=self.recorder)
        self.caches: list[dict[str, Tensor]] = []
        self.rewrites: list[tuple[int, Tensor]] = []
        self._watch_rewrites()

    def frames_first(self, x: Tensor) -> Tensor:
        """[..., C, F, H, W] or [..., F, C, H, W] of the file -> [..., F, C, H, W]."""
        return x.transpose(-4, -3) if self.video_first else x

    def as_recorded(self, x: Tensor) -> Tensor:
        """[..., F, C, H, W] -> the file's order of axes."""
        return self.frames_first(x).contiguous()

    def _watch_rewrites(self) -> None:
        """Keep what a new prompt's pass over the window predicts, and the cache right after it."""
        rewrite = self.sim.runner.rewrite

        def watched(world: World, step: Any) -> None:
            rewrite(world, step)
            self.rewrites.append((world.table.length, self.recorder.take()[-1][1]))
            self.caches.append({"world": world, **pages_of(self.sim, world)})  # type: ignore[dict-item]

        self.sim.runner.rewrite = watched  # type: ignore[method-assign]

    def contexts(self, name: str = "prompt_embeds") -> list[Context]:
        """The prompt, or the image, of each world."""
        given = self.case["in"]
        if "visual_context" in given:
            beside = self.frames_first(given["cond_concat"])
            return [
                self.sim.contextualise(image=x, beside=y) for x, y in zip(given["visual_context"], beside, strict=True)
            ]
        return [self.sim.contextualise(text=x) for x in given[name]]

    def open(self, contexts: list[Context]) -> list[World]:
        """Open the worlds, with their first latents where the case has some."""
        first = self.case["in"].get("initial_latent")
        starts = [Start.of(c, None if first is None else first[b]) for b, c in enumerate(contexts)]
        return [self.sim.open(s, seed=0, source=self.noise(b)) for b, s in enumerate(starts)]

    def noise(self, b: int) -> GivenNoise:
        """The recorded noise of one world, keyed as the engine draws it."""
        given, latents = self.case["in"], {}
        whole = self.frames_first(given["noise"])[b]
        blocks = [k for k in given if k.startswith("step_noise.block")]
        at = whole.shape[0] - sum(self.frames_first(given[k]).shape[2] for k in blocks) if blocks else 0
        at = at if blocks else self.info["layout"].get("initial_frames", 0)
        for i in range(len(blocks) or (whole.shape[0] - at) // self.preset.block):
            steps = self.frames_first(given[f"step_noise.block{i}"]) if blocks else None
            size = self.preset.block if steps is None else steps.shape[2]
            latents[i, 0] = whole[at : at + size]
            for draw, x in enumerate(() if steps is None else steps, start=2):
                latents[i, draw] = x[b]
            at += size
        return GivenNoise(latents)

    def condition(self, world: World, b: int, prompt: Context | None = None) -> Condition:
        """The recorded actions of a world's next block; none where it has none."""
        spec, length = self.sim.spec, world.table.length
        rows = slice(spec.frames_upto(length), spec.frames_upto(length + spec.block_at(length)))
        given = [self.case["in"][k][b, rows] for k in ("keyboard_cond", "mouse_cond") if k in self.case["in"]]
        actions = np.concatenate([x.numpy() for x in given], axis=-1) if given else None
        count = spec.frames_at(length)
        return Condition.of(np.zeros((count, spec.actions.width), np.float32) if actions is None else actions, prompt)


def replay(case: Case, device: str = "cpu") -> None:
    """Replay a rollout in float32, and once more in bfloat16 where that was recorded, and compare everything."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        run = Replay(case, Path(folder), torch.float32, device)
        latents = compare_rollout(run)
        case.compare("latents", run.as_recorded(latents))
        if case["out_bf16"]:
            rough = Replay(case, Path(folder), torch.bfloat16, device)
            *_, last = roll(rough)
            case.compare_bf16(rough.as_recorded(last[-1]))


def roll(run: Replay) -> Iterator[tuple[int, list[World], list[tuple[Tensor, Tensor]], Tensor]]:
    """Step through all blocks: (block, worlds, the denoiser's calls, all latents so far [B, F, C, H, W])."""
    names = ["prompt_embeds"]
    switches = (run.info.get("prompt_switch") or {}).get("effective_frames", [])
    if switches:
        names = [f"prompt_embeds.{i}" for i in range(len(switches) + 1)]
    worlds = run.open(run.contexts(names[0]))
    first = run.case["in"].get("initial_latent")
    made = [] if first is None else [run.frames_first(first)]
    yield -1, worlds, run.recorder.take(), torch.cat(made, 1) if made else torch.zeros(0)
    total = run.frames_first(run.case["out"]["latents"]).shape[1]
    block = 0
    while worlds[0].table.length < total:
        prompts: list[Context | None] = [None] * len(worlds)
        if worlds[0].table.length in switches:
            prompts = list(run.contexts(names[1 + switches.index(worlds[0].table.length)]))
        conditions = [run.condition(w, b, p) for b, (w, p) in enumerate(zip(worlds, prompts, strict=True))]
        size = run.sim.spec.block_at(worlds[0].table.length)
        run.sim.step(worlds, conditions)
        made.append(torch.stack([w.latents[-size:] for w in worlds if w.latents is not None]).cpu())
        yield block, worlds, run.recorder.take(), torch.cat(made, 1)
        block += 1


def compare_rollout(run: Replay) -> Tensor:
    """Compare every block of a rollout; returns all latents [B, F, C, H, W]."""
    case, sim, out = run.case, run.sim, run.case["out"]
    if "timesteps" in out:
        case.compare("timesteps", torch.tensor(timesteps(run.preset.rollout)))
    if "sigmas" in out:
        told = timesteps(run.preset.rollout)
        case.compare("sigmas", torch.tensor([sigma_at(t, run.preset.rollout) for t in told]))
    latents = torch.zeros(0)
    for block, worlds, calls, latents in roll(run):  # noqa: B007
        if block < 0:
            for j, (_, flow) in enumerate(prefix_calls(calls, len(worlds))):
                case.compare(f"prefix_flow.{j}", run.as_recorded(flow))
            continue
        flows = [(x, p, step) for (x, p), step in zip(calls, sim.passes, strict=True)]
        clean = [step.update(x, p) for x, p, step in flows if step.update]
        if f"x0.block{block}" in out:
            case.compare(f"x0.block{block}", run.as_recorded(torch.stack(clean)))
        if f"clean_flow.block{block}" in out:
            case.compare(f"clean_flow.block{block}", run.as_recorded(flows[-1][1]))
    compare_caches(run, worlds)
    compare_rewrites(run)
    return latents


def prefix_calls(calls: list[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    """Calls over given latents, which run world by world, joined over the worlds."""
    each = len(calls) // count
    return [
        (torch.cat([calls[b * each + j][0] for b in range(count)]), torch.cat([calls[b * each + j][1] for b in range(count)]))
        for j in range(each)
    ]


def compare_rewrites(run: Replay) -> None:
    """What a new prompt's pass predicted, where, and the cache that it left."""
    case, count = run.case, run.count
    for j in range(len(run.rewrites) // count):
        rows = slice(j * count, (j + 1) * count)
        length = run.rewrites[j * count][0]
        case.compare(f"recache{j}.at_frame", torch.tensor([length]))
        case.compare(f"recache{j}.flow", run.as_recorded(torch.cat([flow for _, flow in run.rewrites[rows]])))
        compare_pages(run, f"recache{j}.kv.", run.caches[rows], length)


def compare_caches(run: Replay, worlds: list[World]) -> None:
    """The pages that worlds hold at the end, and how many tokens were ever seen and are held."""
    case, out, cache = run.case, run.case["out"], run.info["cache"]
    length, tokens = worlds[0].table.length, cache["tokens_per_frame"]
    held = min(length, run.preset.window or length)
    counts = {"kv.global_end": length * tokens, "kv.local_end": held * tokens, "kv_keyboard.local_end": held}
    for name, value in counts.items():
        if name in out:
            case.compare(name, torch.tensor([value]))
    compare_pages(run, "kv.", [pages_of(run.sim, w) for w in worlds], length)


def compare_pages(run: Replay, prefix: str, caches: list[dict[str, Tensor]], length: int) -> None:
    """Compare the pages held with the slots of the recorded cache: sinks, then the others, oldest first."""
    window, sink = run.preset.window, run.preset.sink
    held = min(length, window or length)
    origin = int(caches[0]["origin"])
    slots = [*range(origin, origin + min(sink, held)), *range(length - held + min(sink, held), length)]
    positions = caches[0]["positions"].tolist()
    where = [slots.index(p) for p in positions]
    note = "" if len(where) == len(slots) else f"{len(where)} of {len(slots)} frames: no later block sees the others"
    for name, want in run.case["out"].items():
        stream, _, rest = name.removeprefix(prefix.removesuffix(".")).partition(".")
        if not name.startswith(prefix.removesuffix(".")) or not rest.startswith("layer"):
            continue
        layer, part = rest.removeprefix("layer").split(".")
        key = {"": "self", "_mouse": "mouse", "_keyboard": "keyboard"}.get(stream)
        if key is None:
            continue
        got = torch.stack([c[f"{key}.{'keys' if part == 'k' else 'values'}"][int(layer)] for c in caches])
        compare_slots(run.case, name, got, want, where, len(slots), note)


def compare_slots(case: Case, name: str, got: Tensor, want: Tensor, where: list[int], slots: int, note: str) -> None:
    """Compare pages [B, T, S, h, d] with a recorded cache: [B, slots S, h, d], or rows of a few places."""
    tokens = got.shape[2]
    if want.shape[0] == len(got) and want.shape[1] >= slots * tokens:
        kept = want[:, : slots * tokens].unflatten(1, (slots, tokens))[:, where]
        case.compare(name, got, kept, note)
    else:  # rows are the first places of each world: [places, slots, h, d]
        places = want.shape[0] // len(got)
        rows = got[:, :, :places].transpose(1, 2).flatten(0, 1)
        case.compare(name, rows, want[:, :slots][:, where], note)


def pages_of(sim: Engine, world: World) -> dict[str, Tensor]:
    """Keys and values of a world's pages, [layers, T, S, h, d] a stream, and which positions they are of."""
    stored = sim.pool.export(world.table.pages)
    return {"positions": torch.tensor(world.table.positions), "origin": torch.tensor(world.table.origin), **stored}
