"""Recorded rollouts of Self Forcing, CausVid, LongLive and Matrix-Game 2, replayed by the engine.

Every step, prediction and cached page of the worlds (worlds.py) is compared with what was recorded.

Legend: B worlds, F latent frames, C H W latent, T pages, S tokens of a frame, h heads, d head width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parity.case import Case
from benchmarks.parity.worlds import Replay
from engine import Context, World
from engine.schedule import sigma_at, timesteps


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
    compare_pages(run, "kv.", [run.held[id(w)] for w in worlds], length)


def compare_pages(run: Replay, prefix: str, caches: list[dict[str, Tensor]], length: int) -> None:
    """Compare the pages held with the slots of the recorded cache: sinks, then the others, oldest first."""
    window, sink = run.preset.window, run.preset.sink
    held = min(length, window or length)
    origin = int(caches[0]["origin"])
    slots = [*range(origin, origin + min(sink, held)), *range(length - held + min(sink, held), length)]
    positions = caches[0]["positions"].tolist()
    where = [slots.index(p) for p in positions]
    module = run.sim.spec.action_module
    note = "" if len(where) == len(slots) else f"{len(where)} of {len(slots)} frames: no later block sees the others"
    for name, want in run.case["out"].items():
        stream, _, rest = name.removeprefix(prefix.removesuffix(".")).partition(".")
        if not name.startswith(prefix.removesuffix(".")) or not rest.startswith("layer"):
            continue
        layer, part = rest.removeprefix("layer").split(".")
        key = {"": "self", "_mouse": "mouse", "_keyboard": "keyboard"}.get(stream)
        if key is None:
            continue
        index = int(layer) if key == "self" or module is None else module.layers.index(int(layer))
        got = torch.stack([c[f"{key}.{'keys' if part == 'k' else 'values'}"][index] for c in caches])
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
