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
from engine.opening import KEYS
from engine.schedule import sigma_at, timesteps

# What stands for a sampler where each run is told its timestep.
ONE_STEP: dict[str, Any] = {"configured_steps": [1000], "shift": 5.0, "warp": False, "context_noise": 0}


def preset_of(case: Case) -> Preset:
    """How the case's model is run."""
    info, layout = case.info, case.info["layout"]
    sampler, cache = info.get("sampler") or ONE_STEP, info.get("cache") or no_cache(layout["latent_frames"])
    window = cache["window_frames"]
    rewrite = {True: "window", False: "all", None: ""}[cache.get("global_sink")]
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


def mode_of(info: dict[str, Any]) -> str:
    """Which Matrix-Game the case is of, as it says itself, or by the number of keys; "" where it is none."""
    module = info["model"].get("action_config")
    if not module:
        return ""
    by_keys = {len(keys): mode for mode, keys in KEYS.items()}
    return info.get("mode") or by_keys.get(module["keyboard_dim_in"], "")


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
        path, alpha = case.write_weights(folder), (case.info.get("lora") or {}).get("alpha")
        self.preset = preset_of(case)
        extras: dict[str, Any] = {"lora": lora, "lora_alpha": alpha} if lora else {}
        model = engine.load(path, device, dtype, self.preset, codec="preview", **extras)
        self.count = self.info["layout"]["batch"]
        self.sim = Engine(model, max_worlds=self.count)
        self.recorder = Recorder(self.sim.runner.model.denoiser)
        self.sim.runner.model = replace(self.sim.runner.model, denoiser=self.recorder)
        self.caches: list[dict[str, Tensor]] = []
        self.rewrites: list[tuple[int, Tensor]] = []
        self._watch_rewrites()

    def _watch_rewrites(self) -> None:
        """Keep what a new prompt's pass over the window predicts, and the cache right after it."""
        rewrite = self.sim.runner.rewrite

        def watched(world: World, step: Any) -> None:
            rewrite(world, step)
            if not (made := self.recorder.take()):
                return  # there was no history yet
            self.rewrites.append((world.table.length, made[-1][1]))
            self.caches.append({"world": world, **pages_of(self.sim, world)})  # type: ignore[dict-item]

        self.sim.runner.rewrite = watched  # type: ignore[method-assign]

    @property
    def num_frames(self) -> int:
        """Latent frames of the whole recording, given ones included."""
        made = self.case["out"]["latents"] if "latents" in self.case["out"] else self.case["in"]["x"]
        return self.case.frames_first(made).shape[1]

    @property
    def num_given(self) -> int:
        """Latent frames that the recording begins from."""
        first = self.case["in"].get("initial_latent")
        return 0 if first is None else self.case.frames_first(first).shape[1]

    def contexts(self, name: str = "prompt_embeds") -> list[Context]:
        """The prompt, or the image, of each world."""
        given = self.case["in"]
        if "visual_context" in given:
            beside = self.case.frames_first(given["cond_concat"])
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
        """The recorded noise of one world, keyed as the engine draws it; given latents of single calls stand for it."""
        given, latents = self.case["in"], {}
        whole = self.case.frames_first(given["noise"] if "noise" in given else given["x"])[b]
        # Noise covers the frames to be made or, in CausVid's, the given ones too.
        at, skipped = self.num_given, self.num_frames - len(whole)
        while at < self.num_frames:
            block, size = len({block for block, _ in latents}), self.sim.spec.block_at(at)
            latents[block, 0] = whole[at - skipped : at - skipped + size]
            steps = given.get(f"step_noise.block{block}")
            for draw, x in enumerate(() if steps is None else self.case.frames_first(steps), start=2):
                latents[block, draw] = x[b]
            at += size
        return GivenNoise(latents)

    def condition(self, world: World, b: int, prompt: Context | None = None) -> Condition:
        """The recorded actions of a world's next block; none where it has none."""
        spec, length = self.sim.spec, world.table.length
        rows = slice(spec.frames_upto(length), spec.frames_upto(length + spec.block_at(length)))
        module = spec.action_module
        names = [] if module is None else ["keyboard_cond", *(["mouse_cond"] if module.mouse else [])]
        given = [self.case["in"][name][b, rows] for name in names]
        actions = np.concatenate([x.numpy() for x in given], axis=-1) if given else None
        none = np.zeros((spec.frames_at(length), spec.actions.width), np.float32)
        return Condition.of(none if actions is None else actions, prompt)


def replay(case: Case, device: str = "cpu") -> None:
    """Replay a rollout in float32, and once more in bfloat16 where that was recorded, and compare everything."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        run = Replay(case, Path(folder), torch.float32, device)
        latents = compare_rollout(run)
        case.compare("latents", case.frames_first(latents))
        if case["out_bf16"]:
            rough = Replay(case, Path(folder), torch.bfloat16, device)
            *_, last = roll(rough)
            case.compare_bf16("latents", case.frames_first(last[-1]))


def roll(run: Replay) -> Iterator[tuple[int, list[World], list[tuple[Tensor, Tensor]], Tensor]]:
    """Step through all blocks: (block, worlds, the denoiser's calls, all latents so far [B, F, C, H, W])."""
    names = ["prompt_embeds"]
    switches = (run.info.get("prompt_switch") or {}).get("effective_frames", [])
    if switches:
        names = [f"prompt_embeds.{i}" for i in range(len(switches) + 1)]
    worlds = run.open(run.contexts(names[0]))
    first = run.case["in"].get("initial_latent")
    made = [] if first is None else [run.case.frames_first(first)]
    yield -1, worlds, run.recorder.take(), torch.cat(made, 1) if made else torch.zeros(0)
    block = 0
    while worlds[0].table.length < run.num_frames:
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
    case, sim, told = run.case, run.sim, timesteps(run.preset.rollout)
    case.compare("timesteps", torch.tensor(told))
    case.compare("sigmas", torch.tensor([sigma_at(t, run.preset.rollout) for t in told]))
    latents = torch.zeros(0)
    for block, worlds, calls, latents in roll(run):  # noqa: B007
        if block < 0:
            for j, (_, flow) in enumerate(prefix_calls(calls, len(worlds))):
                case.compare(f"prefix_flow.{j}", case.frames_first(flow))
            continue
        flows = [(x, p, step) for (x, p), step in zip(calls, sim.passes, strict=True)]
        clean = [step.update(x, p) for x, p, step in flows if step.update]
        case.compare(f"x0.block{block}", case.frames_first(torch.stack(clean)))
        case.compare(f"clean_flow.block{block}", case.frames_first(flows[-1][1]))
    compare_caches(run, worlds)
    compare_rewrites(run)
    return latents


def prefix_calls(calls: list[tuple[Tensor, Tensor]], count: int) -> list[tuple[Tensor, Tensor]]:
    """Calls over given latents, which run world by world, joined over the worlds."""
    each = len(calls) // count
    return [
        (
            torch.cat([calls[b * each + j][0] for b in range(count)]),
            torch.cat([calls[b * each + j][1] for b in range(count)]),
        )
        for j in range(each)
    ]


def compare_rewrites(run: Replay) -> None:
    """What a new prompt's pass predicted, where, and the cache that it left."""
    case, count = run.case, run.count
    for j in range(len(run.rewrites) // count):
        rows = slice(j * count, (j + 1) * count)
        length = run.rewrites[j * count][0]
        case.compare(f"recache{j}.at_frame", torch.tensor([length]))
        case.compare(f"recache{j}.flow", case.frames_first(torch.cat([flow for _, flow in run.rewrites[rows]])))
        compare_pages(run, f"recache{j}.kv.", run.caches[rows], length)


def compare_caches(run: Replay, worlds: list[World]) -> None:
    """The pages that worlds hold at the end, and how many tokens were ever seen and are held."""
    case, length, tokens = run.case, worlds[0].table.length, run.sim.spec.stream.tokens
    held = min(length, run.preset.window or length)
    counts = {"kv.global_end": length * tokens, "kv.local_end": held * tokens, "kv_keyboard.local_end": held}
    for name, value in counts.items():
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
