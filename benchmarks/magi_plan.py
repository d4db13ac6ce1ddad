"""python -m benchmarks.magi_plan: what MAGI-1 takes, as a table: 4.5B and 24B, base and distilled, at two sizes.

One row in full, and checked: `python -m benchmarks.plan --preset magi-4.5b-distill`. Formulas, as there, stand beside
counts of the engine's own parts on the meta device, and have to be equal:

    weights      parameters x bytes a number, of which some stay float32; fp8 layers with their scales
    pool         worlds x (chunks of history that any chunk in flight sees + the one that joins them) x bytes a chunk:
                 it does not grow with the video. What is in flight lives for one layer of one pass, and the K/V of the
                 chunk that becomes history for one pass
    context      2 x layers x tokens x kv heads x head width x bytes a number, of a prompt and of the text of none
    operations   of one step, a chunk of video: every run of every pass that guidance asks for, while as many chunks are
                 in flight as there can be
    peak         weights + pool + contexts + the larger of a pass's and a decode's activations, T5 not counted

Legend: c chunks in flight, S tokens of a latent frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from benchmarks.formulas import (
    magi_context_bytes,
    magi_decode_flops,
    magi_flops,
    magi_parameters,
    magi_weight_bytes,
    page_bytes,
)
from benchmarks.magi_meta import Run, count_magi_decode, count_run, runs_of, unfilled_magi
from benchmarks.meta import META, Count
from benchmarks.models import magi_spec_of
from engine.codecs.magi_vae import MagiVae
from engine.codecs.magi_vae_tiles import cut_latents
from engine.conditioners.magi_text import NULL_TOKENS
from engine.kv.pool import Pool
from engine.models.magi import MagiDiT
from engine.presets import PRESETS, Preset
from engine.published import MagiSpec, MagiVaeSpec, Staggered
from engine.sizing import pages_needed
from engine.spec import WorldSpec
from engine.stages import legs

H200 = 139 * 2**30  # bytes
STEPS = (8, 16, 64)
SHALLOW = 2  # layers that are enough to count activations
PEAK, BANDWIDTH = 989e12, 4.8e12  # operations and bytes a second


@dataclass(frozen=True)
class Step:
    """One step of a world that has as many chunks in flight as there can be.

    Attributes:
        runs: every run of the denoiser, and how many chunks of history it is shown.
        tokens: of a prompt.
    """

    spec: WorldSpec
    runs: tuple[Run, ...]
    tokens: int

    @classmethod
    def of(cls, spec: WorldSpec, worlds: int = 1, tokens: int | None = None) -> Step:
        """Raises ValueError where chunks see all there are before them."""
        assert isinstance(spec.denoiser, MagiSpec)
        assert spec.staggered is not None
        passes = [one for leg in legs(spec.staggered, True) for one in leg.passes]
        runs = tuple(run for one in passes for run in runs_of(spec, one, worlds))
        return cls(spec, runs, tokens or spec.denoiser.text_tokens)

    @property
    def history(self) -> int:
        """Finished chunks in the pool."""
        assert self.spec.staggered is not None
        return self.spec.staggered.reach or 0

    def flops(self, run: Run) -> tuple[int, int, int]:
        """Operations of a run: products, attention to chunks, attention to texts."""
        sizes = self.spec.denoiser
        assert isinstance(sizes, MagiSpec)
        keys, texts = run.keys(self.history), run.text_tokens(self.tokens)
        return magi_flops(sizes, self.spec.stream.tokens, self.spec.block, run.rows, keys, texts)

    @property
    def total(self) -> dict[str, int]:
        """Operations of the step."""
        parts = zip(*(self.flops(run) for run in self.runs), strict=True)
        return dict(zip(("linear_flops", "attention_flops", "context_flops"), map(sum, parts), strict=True))


@dataclass(frozen=True)
class Built:
    """A world's parts on the meta device, and what was counted of them, each kind of run once."""

    step: Step
    worlds: int
    dtype: torch.dtype
    kv_dtype: str | None
    denoiser: MagiDiT
    pool: Pool
    counts: dict[Run, Count]
    decode: Count

    @property
    def spec(self) -> WorldSpec:
        return self.step.spec


def preset_of(base: Preset, steps: int | None, flight: int | None) -> Preset:
    """A preset with so many steps and chunks in flight.

    Raises:
        ValueError: it is none of MAGI-1, or the settings do not go together.
    """
    rollout = base.rollout
    if not isinstance(rollout, Staggered):
        raise ValueError("steps and flight are of MAGI-1's presets: leave them out")
    changed = replace(rollout, num_steps=steps or rollout.num_steps, window=flight or rollout.window)
    return replace(base, rollout=changed)


def build(spec: WorldSpec, dtype: torch.dtype, kv_dtype: str | None = None, worlds: int = 1) -> Built:
    """Build it all, and run every kind of run and one decode.

    Raises:
        ValueError: the settings do not go together.
    """
    assert isinstance(spec.denoiser, MagiSpec)
    step, denoiser = Step.of(spec, worlds), unfilled_magi(spec.denoiser, dtype)
    pool = Pool(spec.streams, worlds * pages_needed(spec.kv, spec.block, False)[0], dtype, META, 0, kv_dtype)
    counts = {
        run: count_run(denoiser, spec, run, step.history, pool, step.tokens, worlds) for run in dict.fromkeys(step.runs)
    }
    return Built(step, worlds, dtype, kv_dtype, denoiser, pool, counts, count_magi_decode(spec, dtype, worlds))


def memory(b: Built) -> dict[str, int]:
    """Bytes, by formula; activations as counted."""
    sizes, item = b.spec.denoiser, b.dtype.itemsize
    assert isinstance(sizes, MagiSpec)
    page = page_bytes(b.spec.stream, item, b.kv_dtype)
    codec = sum(x.numel() for x in unfilled_vae(b.spec).parameters())
    row = {
        "denoiser_parameters": magi_parameters(sizes),
        "codec_parameters": codec,
        "weight_bytes": magi_weight_bytes(sizes, item) + item * codec,
        "kv_bytes_per_latent_frame": page,
        "kv_bytes_per_chunk": b.spec.block * page,
        "pool_bytes": b.pool.capacity * page,
        "context_bytes": b.worlds * magi_context_bytes(sizes, b.step.tokens, item)
        + magi_context_bytes(sizes, NULL_TOKENS, item),
        "pass_activation_bytes": max(count.activations for count in b.counts.values()),
        "decode_activation_bytes": b.decode.activations,
    }
    kept = ("weight_bytes", "pool_bytes", "context_bytes")
    largest = max(row["pass_activation_bytes"], row["decode_activation_bytes"])
    return {**row, "peak_bytes": sum(row[name] for name in kept) + largest}


def unfilled_vae(spec: WorldSpec) -> MagiVae:
    assert isinstance(spec.codec, MagiVaeSpec)
    with META:
        return MagiVae(spec.codec)


def tiles_of(spec: WorldSpec) -> list[tuple[int, int, int]]:
    """Latents of every tile of a chunk."""
    codec, (_, h, w) = spec.codec, spec.latent
    assert isinstance(codec, MagiVaeSpec)
    tiling = unfilled_vae(spec).tiling
    time = cut_latents(tiling.frames, tiling.temporal_overlap, codec.frames_per_latent)
    side = cut_latents(tiling.pixels, tiling.overlap, codec.scale)
    return list(product(time.pieces(spec.block), side.pieces(h), side.pieces(w)))


def work(step: Step, worlds: int, weight_bytes: int) -> dict[str, int | float]:
    """Operations of a chunk of every world, and how long they take at least.

    Args:
        weight_bytes: of all weights, which every run reads once.
    """
    spec, parts = step.spec, step.total
    assert isinstance(spec.codec, MagiVaeSpec)
    decode = worlds * magi_decode_flops(spec.codec, tiles_of(spec))
    total, seconds = sum(parts.values()) + decode, spec.block * spec.frames_per_latent / spec.fps
    bound = max(total / PEAK, len(step.runs) * weight_bytes / BANDWIDTH)
    return {
        **parts,
        "codec_flops": decode,
        "flops_per_block": total,
        "flops_per_video_second": round(total / seconds),
        "lower_bound_ms": bound * 1e3,
        "upper_bound_fps": worlds * spec.block * spec.frames_per_latent / bound,
    }


def compared(b: Built, row: dict[str, int], flops: dict[str, int | float]) -> list[tuple[str, int, int]]:
    """What a formula says and what was counted, by name."""
    sizes, item = b.spec.denoiser, b.dtype.itemsize
    assert isinstance(sizes, MagiSpec)
    tensors = [*b.denoiser.parameters(), *b.denoiser.buffers()]
    coded = sum(x.numel() for name, x in b.denoiser.named_buffers() if name.endswith(".weight"))
    runs = [b.counts[run] for run in b.step.runs]
    attention = int(flops["attention_flops"] + flops["context_flops"])
    context = b.denoiser.contextualise(torch.empty(b.step.tokens, sizes.text_width, device=META))
    null = magi_context_bytes(sizes, NULL_TOKENS, item)
    return [
        ("denoiser parameters", row["denoiser_parameters"], coded + sum(x.numel() for x in b.denoiser.parameters())),
        ("denoiser bytes", magi_weight_bytes(sizes, item), sum(x.nbytes for x in tensors)),
        ("KV bytes of a latent frame", row["kv_bytes_per_latent_frame"], b.pool.page_bytes),
        ("pool bytes", row["pool_bytes"], b.pool.device_bytes),
        ("context bytes", row["context_bytes"] - null, b.worlds * context.num_bytes),
        ("operations of the passes", attention + int(flops["linear_flops"]), sum(count.flops for count in runs)),
        ("attention of the passes", attention, sum(count.attention for count in runs)),
        ("operations of a decode", int(flops["codec_flops"]), b.decode.flops),
    ]


def described(b: Built) -> dict[str, Any]:
    """What a row is of."""
    spec, rollout = b.spec, b.spec.staggered
    assert rollout is not None
    passes = sum(len(leg.passes) for leg in legs(rollout, True))
    return {
        "model": f"{spec.name}, {'base' if rollout.guidance else 'distilled'}",
        "frame": f"{spec.frame[0]}x{spec.frame[1]}",
        "worlds": b.worlds,
        "steps": rollout.num_steps,
        "in_flight": f"{rollout.window} chunks of {spec.block} latent frames; {b.step.history} clean ones are seen",
        "passes": f"{passes} a chunk, {len(b.step.runs)} runs of the denoiser",
        "frames_per_block": spec.block * spec.frames_per_latent,
    }


def holds(peak: int) -> str:
    """Whether one H200 holds so many bytes."""
    return f"{'yes' if peak <= H200 else 'no'}: {peak / 2**30:.1f} of {H200 / 2**30:.0f} GiB, for videos of any length"


def shallow(spec: WorldSpec, dtype: torch.dtype) -> Built:
    """A world's parts with what was counted of two layers: activations live for one, so that they are those of all."""
    assert isinstance(spec.denoiser, MagiSpec)
    b = build(replace(spec, denoiser=replace(spec.denoiser, layers=SHALLOW)), dtype)
    return replace(
        b, step=Step.of(spec), pool=Pool(spec.streams, pages_needed(spec.kv, spec.block, False)[0], dtype, META)
    )


def rows() -> Iterator[dict[str, Any]]:
    """Every setting of the table: bytes do not depend on the number of steps, so they are counted once."""
    for model, frame in product(("magi-4.5b", "magi-24b"), ((720, 720), (720, 1280))):
        for kind, flight in product(("distill", "base"), (4, 1)):
            base = PRESETS[f"{model}-{kind}"]
            specs = [magi_spec_of(model, preset_of(base, n, flight), frame) for n in STEPS]
            b = shallow(specs[0], torch.bfloat16)
            bytes_ = memory(b)
            flops = [work(Step.of(spec), 1, bytes_["weight_bytes"])["flops_per_video_second"] for spec in specs]
            yield {**described(b), **bytes_, "flops": flops}


def main() -> None:
    steps = ", ".join(str(n) for n in STEPS)
    print(f"| model | frame | in flight | weights | clean chunk | pool | peak | H200 | PFLOP a second, {steps} steps |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows():
        names = ("weight_bytes", "kv_bytes_per_chunk", "pool_bytes", "peak_bytes")
        sizes = " | ".join(f"{row[name] / 2**30:.1f} GiB" for name in names)
        flops = ", ".join(f"{x / 1e15:.1f}" for x in row["flops"])
        held = holds(row["peak_bytes"]).split(":")[0]
        print(
            f"| {row['model']} | {row['frame']} | {row['in_flight'].split()[0]} | {sizes} | {held} | {flops} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
