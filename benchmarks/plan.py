"""python -m benchmarks.plan: what a published world takes, in bytes and operations, before anything is run.

Everything is computed from sizes by formulas, and then checked against the engine itself: its denoiser, codec and KV
pool built on the meta device at full size, one pass and one decode run there under a counter of operations. Formula
and count have to be equal; where they are not, both are printed and the exit code is 1.

    weights      parameters of denoiser and codec x bytes a number (encoders of prompts and pictures not counted)
    pool         worlds x pages a world is admitted with x bytes a page
    context      2 x layers x tokens x width x bytes a number, and what stands beside the latents
    peak         weights + pool + worlds x (context + codec state) + gathered + the larger of a pass's and a decode's
                 activations; gathered is a window's K/V copied together: of one layer, or of all where they are few
    operations   passes x a pass's (products and attention) + the codec's convolutions, at a full window
    lower bound  the longer of operations / 989 TF/s (dense bf16) and bytes read / 4.8 TB/s (H200; an H100 has 3.35)

With --ranks, also which exchange so many devices should run a block with, by formula and published figures of links
and devices (plan_ranks.py has more of it).

MAGI-1's presets are planned by magi_plan.py, whose own command prints all of them. Writes the row as JSON with --out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from benchmarks import magi_plan
from benchmarks.decoding import decoding_line
from benchmarks.formulas import attention_flops, context_bytes, page_bytes, parameters
from benchmarks.meta import META, Count, context_of, count_decode, count_pass, unfilled_denoiser
from benchmarks.models import MAGI_MODELS, MODELS, VAE_PARAMETERS, magi_spec_of, spec_of, unfilled_codec
from benchmarks.output import cut_short
from benchmarks.plan_ranks import RanksConfig, of_option, rank_plan
from engine.codecs.taehv import Taehv
from engine.codecs.wan_vae import WanVae
from engine.codecs.work import flops as codec_flops
from engine.conditioning import Context
from engine.kv.paged import KEEP
from engine.kv.pool import Pool
from engine.loading import check_dtype
from engine.models.wan import WanDiT, flops
from engine.presets import Preset, preset
from engine.published import Staggered, WanSpec, WanVaeSpec
from engine.sizing import pages_needed, slack_pages
from engine.spec import WorldSpec
from inferix_env.record import write_text

PEAK, BANDWIDTH = 989e12, 4.8e12  # operations and bytes a second


@dataclass(frozen=True)
class PlanConfig:
    """What to plan.

    Attributes:
        preset: how the model is run; see engine.PRESETS.
        model: its sizes: t2v-1.3b, t2v-14b, matrix-game-2-universal, magi-4.5b, magi-24b-fp8, ...; by default those of
            the preset.
        height, width: of the frame in pixels; the preset's by default.
        window, sink: latent frames in the cache (sinks, past and block) and, of these, sinks; the preset's by default.
        batch: worlds.
        dtype: bfloat16 or float32.
        kv_dtype: how pages are stored: int8, fp8, or as computed.
        codec: vae or tiny.
        steps, flight: of MAGI-1, denoising steps and chunks in flight; the preset's by default.
        ranks: devices for one world's block; None leaves that part out.
        links, across, node: what connects those of a node, and nodes, and how many are in one; see plan_ranks.py.
        machine: what devices are; see plan_ranks.py.
        json: print the row as JSON and nothing else.
        out: where to write it.
    """

    preset: str = "self-forcing"
    model: str | None = None
    height: int | None = None
    width: int | None = None
    window: int | None = None
    sink: int | None = None
    batch: int = 1
    dtype: str = "bfloat16"
    kv_dtype: str | None = None
    codec: str = "vae"
    steps: int | None = None
    flight: int | None = None
    ranks: int | None = None
    links: str = "nvlink4"
    across: str = "ib-ndr"
    node: int = 8
    machine: str = "h200"
    json: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch {self.batch}: expected 1 or more worlds")
        if self.ranks is not None and self.ranks < 1:
            raise ValueError(f"ranks {self.ranks}: expected 1 or more devices")
        if self.codec not in ("vae", "tiny"):
            raise ValueError(f"codec {self.codec!r}: expected 'vae' or 'tiny'")
        run = self.run
        if isinstance(run.rollout, Staggered) and (self.window, self.sink, self.codec) != (None, None, "vae"):
            raise ValueError(
                "MAGI-1's ranges say what is kept, and its VAE has no tiny one: leave window, sink, codec out"
            )
        if run.window is not None and run.window < run.sink + run.block:
            raise ValueError(
                f"window {run.window}: expected at least {run.sink + run.block}, the sinks and the block of {run.block}"
            )

    @property
    def run(self) -> Preset:
        """The preset with the changes asked for."""
        chosen = preset(self.preset)
        if self.steps is not None or self.flight is not None:
            chosen = magi_plan.preset_of(chosen, self.steps, self.flight)
        window = chosen.window if self.window is None else self.window
        return replace(chosen, window=window, sink=chosen.sink if self.sink is None else self.sink)

    @property
    def spec(self) -> WorldSpec:
        """What the world is."""
        run = self.run
        if isinstance(run.rollout, Staggered):
            default = next(name for name in MAGI_MODELS if self.preset.startswith(name))
            return magi_spec_of(self.model or default, run, (self.height or run.size[0], self.width or run.size[1]))
        default = self.preset if self.preset in MODELS else "t2v-1.3b"
        size = (self.height or run.size[0], self.width or run.size[1])
        return spec_of(self.model or default, run, self.codec, size, "published")

    @property
    def on_ranks(self) -> RanksConfig:
        """The devices, if there are several."""
        return RanksConfig(
            self.preset, ranks=self.ranks or 1, links=self.links, across=self.across, node=self.node,
            machine=self.machine, worlds=self.batch, dtype=self.dtype, kv_dtype=self.kv_dtype,
        )  # fmt: skip


@dataclass(frozen=True)
class Check:
    """What a formula says and what was counted."""

    name: str
    formula: int
    counted: int


@dataclass(frozen=True)
class Built:
    """A world's parts on the meta device, and what was counted of them."""

    spec: WorldSpec
    worlds: int
    dtype: torch.dtype
    kv_dtype: str | None
    denoiser: WanDiT
    codec: WanVae | Taehv
    context: Context
    pool: Pool
    one_pass: Count
    decode: Count
    state_bytes: int

    @property
    def visible(self) -> int:
        """Latent frames that a full window shows, those of the block included."""
        return (self.spec.kv.span or 0) + self.spec.block

    @property
    def num_passes(self) -> int:
        assert self.spec.rollout is not None
        return len(self.spec.rollout.steps) + 1


def build(config: PlanConfig) -> Built:
    """Build it all, and run one pass and one decode.

    Raises:
        ValueError: the settings do not go together.
    """
    spec, dtype, n = config.spec, check_dtype(config.dtype), config.batch
    assert isinstance(spec.denoiser, WanSpec)
    assert isinstance(spec.codec, WanVaeSpec)
    assert dtype is not None
    if spec.kv.span is None:
        raise ValueError("this preset has no window: give one with --window")
    denoiser = unfilled_denoiser(spec.denoiser, dtype)
    context = context_of(denoiser, spec)
    slack = 0 if config.kv_dtype else slack_pages(spec, spec.kv, dtype)
    pool = Pool(spec.streams, n * pages_needed(spec.kv, spec.block, False)[0], dtype, META, slack, config.kv_dtype)
    one_pass = count_pass(denoiser, spec, context, n, spec.kv.span)
    codec, (decode, state) = unfilled_codec(spec.codec), count_decode(spec, dtype, n)
    return Built(spec, n, dtype, config.kv_dtype, denoiser, codec, context, pool, one_pass, decode, state)


def memory(b: Built) -> dict[str, int]:
    """Bytes, by formula; activations and the codec's state as counted."""
    assert isinstance(b.spec.denoiser, WanSpec)
    item, streams = b.dtype.itemsize, b.spec.streams
    page = sum(page_bytes(s, item, b.kv_dtype) for s in streams)
    window = b.worlds * b.visible * sum(s.page_bytes(item) for s in streams)
    row = {
        "denoiser_parameters": parameters(b.spec.denoiser),
        "codec_parameters": sum(x.numel() for x in b.codec.parameters()),
        "weight_bytes": 0,
        "kv_bytes_per_latent_frame": page,
        "kv_bytes_of_the_window": b.worlds * b.visible * page,
        "pool_bytes": (b.pool.capacity + b.pool.slack) * page,
        "context_bytes": b.worlds * context_bytes(b.spec, item),
        "codec_state_bytes": b.worlds * b.state_bytes,
        "gathered_bytes": window if window <= KEEP else window // sum(s.layers for s in streams),
        "pass_activation_bytes": b.one_pass.activations,
        "decode_activation_bytes": b.decode.activations,
    }
    row["weight_bytes"] = item * (row["denoiser_parameters"] + row["codec_parameters"])
    kept = ("weight_bytes", "pool_bytes", "context_bytes", "codec_state_bytes", "gathered_bytes")
    largest = max(row["pass_activation_bytes"], row["decode_activation_bytes"])
    return {**row, "peak_bytes": sum(row[name] for name in kept) + largest}


def work(b: Built, bytes_: dict[str, int]) -> dict[str, int | float]:
    """Operations of a block at a full window, and how long they take at least."""
    assert isinstance(b.spec.denoiser, WanSpec)
    assert isinstance(b.spec.codec, WanVaeSpec)
    runs, item = b.worlds * b.num_passes, b.dtype.itemsize
    whole = flops(b.spec.denoiser, b.spec.stream.tokens, b.spec.block, b.visible - b.spec.block)
    visible, cross = attention_flops(b.spec, b.visible - b.spec.block)
    decode = b.worlds * codec_flops(b.spec.codec, *b.spec.frame, frames=b.spec.block)
    total, frames = runs * whole + decode, b.spec.block * b.spec.frames_per_latent
    weights = item * bytes_["denoiser_parameters"]
    read = b.num_passes * (weights + bytes_["kv_bytes_of_the_window"]) + item * bytes_["codec_parameters"]
    bound = max(total / PEAK, read / BANDWIDTH)
    return {
        "attention_flops": runs * visible,
        "context_flops": runs * cross,
        "linear_flops": runs * (whole - visible - cross),
        "codec_flops": decode,
        "flops_per_block": total,
        "read_bytes_per_block": read,
        "lower_bound_ms": bound * 1e3,
        "upper_bound_fps": b.worlds * frames / bound,
    }


def checks(b: Built, row: dict[str, int], flops_: dict[str, int | float]) -> list[Check]:
    """Formulas beside counts."""
    passes, count = b.num_passes, b.one_pass
    attention = flops_["attention_flops"] + flops_["context_flops"]
    total = attention + flops_["linear_flops"]
    made = [
        Check("denoiser parameters", row["denoiser_parameters"], numel(b.denoiser)),
        Check("KV bytes of a latent frame", row["kv_bytes_per_latent_frame"], b.pool.page_bytes),
        Check("pool bytes", row["pool_bytes"], b.pool.device_bytes),
        Check("context bytes", row["context_bytes"], b.worlds * b.context.num_bytes),
        Check("operations of the passes", int(total), passes * count.flops),
        Check("attention of the passes", int(attention), passes * count.attention),
        Check("operations of a decode", int(flops_["codec_flops"]), b.decode.flops),
    ]
    return [*made, Check("codec parameters", VAE_PARAMETERS, numel(b.codec))] if b.spec.codec == WanVaeSpec() else made


def numel(module: nn.Module) -> int:
    """Parameters of a module, counted."""
    return sum(x.numel() for x in module.parameters())


def plan(config: PlanConfig) -> tuple[dict[str, Any], list[Check]]:
    """Everything by formula, and the counts beside it.

    Raises:
        ValueError: the settings do not go together.
    """
    if isinstance(config.run.rollout, Staggered):
        return plan_magi(config)
    b = build(config)
    row, kv = memory(b), b.spec.kv
    operations = work(b, row)
    head = {
        "preset": config.preset,
        "model": b.spec.name,
        "frame": f"{b.spec.frame[0]}x{b.spec.frame[1]}",
        "worlds": b.worlds,
        "dtype": config.dtype,
        "pages": config.kv_dtype or "as computed",
        "codec": config.codec,
        "window": f"{b.visible} latent frames: {kv.sink} sinks, {kv.window} past, the block of {b.spec.block}",
        "passes": f"{b.num_passes - 1}+1",
        "frames_per_block": b.spec.block * b.spec.frames_per_latent,
    }
    return {**head, **row, **operations}, checks(b, row, operations)


def plan_magi(config: PlanConfig) -> tuple[dict[str, Any], list[Check]]:
    """`plan` of a MAGI-1 preset."""
    dtype = check_dtype(config.dtype)
    assert dtype is not None
    b = magi_plan.build(config.spec, dtype, config.kv_dtype, config.batch)
    row = magi_plan.memory(b)
    operations = magi_plan.work(b.step, b.worlds, row["weight_bytes"])
    head = {"preset": config.preset, **magi_plan.described(b), "dtype": config.dtype}
    head |= {"pages": config.kv_dtype or "as computed", "one_h200": magi_plan.holds(row["peak_bytes"])}
    return {**head, **row, **operations}, [Check(*one) for one in magi_plan.compared(b, row, operations)]


def shown(name: str, value: float | str, whole: int) -> str:
    """A value with its unit; of operations, their share of the block's too."""
    if isinstance(value, str):
        return value
    if name.endswith("_bytes") or "_bytes_" in name:
        return f"{value / 1e9:>12.3f} GB"
    if "flops" in name:
        return f"{value / 1e12:>12.2f} TFLOP {100 * value / whole:>6.1f} %"
    return f"{value:>12,.1f}" if isinstance(value, float) else f"{value:>12,}"


def show(row: dict[str, Any], compared: list[Check]) -> None:
    """Print the plan, and what it was checked against."""
    for name, value in row.items():
        print(f"{name.replace('_', ' '):28} {shown(name, value, row['flops_per_block'])}")
    print()
    for c in compared:
        same = "equal" if c.formula == c.counted else f"NOT EQUAL: counted {c.counted:,}"
        print(f"{c.name:28} {c.formula:>24,} {same}")


def main() -> None:
    with cut_short():
        run()


def run() -> None:
    try:
        config = tyro.cli(PlanConfig, description=__doc__)
        chosen = config.ranks and rank_plan(config.on_ranks, config.spec)
        row, compared = plan(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    wrong = [c.name for c in compared if c.formula != c.counted]
    if not config.json:
        show(row, compared)
    if chosen:
        row["on_ranks"] = [of_option(option) for option in (chosen.pick, *chosen.others)]
    if config.json:
        print(json.dumps(row | {"disagree": wrong}, indent=1))
    elif chosen:
        print(f"\n{chosen}\n{decoding_line(config.spec, chosen.links.ranks, config.batch, config.dtype)}")
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(config.out, json.dumps(row, indent=1) + "\n")
    if wrong:
        raise SystemExit(f"error: formula and count disagree on {', '.join(wrong)}")


if __name__ == "__main__":
    main()
