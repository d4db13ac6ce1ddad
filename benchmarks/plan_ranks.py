"""python -m benchmarks.plan_ranks: which exchange several devices should run one world's block with, by formula.

    python -m benchmarks.plan_ranks --preset self-forcing --ranks 8 --links nvlink4
    python -m benchmarks.plan_ranks --preset krea --ranks 16 --machine h200 --sweep

Prints the choice, what else there was and what it costs more, and the history at which to choose again; with --sweep a
line for each number of devices. Nothing is run: figures are published ones (engine/parallel/links.py, machines.py), and
docs/many-gpus.md says what they are worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.decoding import decoding_line
from benchmarks.machine_file import read_machine
from benchmarks.models import spec_of
from benchmarks.output import cut_short
from engine.codecs.preview import Preview
from engine.extras import Extras
from engine.loading import read_card
from engine.opening_magi import world_spec
from engine.parallel.layout import Numbers
from engine.parallel.links import Links, published
from engine.parallel.machines import Machine, machine
from engine.parallel.planner import Plan, plan
from engine.parallel.prices import Option
from engine.parallel.shapes import Shape, shape_at
from engine.parallel.simulate import RANKS, Beside, Point, sweep
from engine.presets import preset
from engine.published import MagiSpec
from engine.spec import KVPolicy, WorldSpec

DOOM = Path(__file__).parents[1] / "inferix_env" / "worlds" / "doom_take_cover"
SMALL = MagiSpec(distill=True)
LARGE = MagiSpec(
    width=6144, ffn=16384, layers=48, heads=48, condition_width=1536, in_channels=32, out_channels=32, doubled=True,
    rescale=0.1, gated=True, distill=True,
)  # fmt: skip
ITEMS = {"bfloat16": 2, "float32": 4}
# Bytes of codecs beside the denoiser. Wan2.1's as counted at 480x832 in bf16 (benchmarks/plan.py): weights, and state
# and activations of a decode, which tiles divide; by area at other sizes. MAGI-1's weights by number, the rest a guess.
WAN, WAN_AREA = Beside(254_000_000, 11_921_000_000), 480 * 832
MAGI = Beside(1_220_000_000, 4_000_000_000)


@dataclass(frozen=True)
class RanksConfig:
    """What to plan.

    Attributes:
        preset: one of engine.PRESETS, "krea" (the 14B of Krea Realtime: 3 latent frames of history), or "doom".
        model: sizes of a Wan2.1 denoiser, such as t2v-14b; by default those of the preset.
        ranks: devices.
        links: what connects those of a node: nvlink3, nvlink4, nvlink5, pcie4, pcie5, ...
        across: what connects nodes: ib-hdr, ib-ndr, ethernet-100g, ...
        node: devices of a node.
        machine: h100, h200, b200, a100 or 4090; or a file that benchmarks.kernels wrote, .json.
        memory: GB of a device that may be used; by default nine tenths of what it has.
        worlds: how many run in one call.
        length: latent frames that they have behind them.
        window: latent frames in the cache, sinks and block among them; 0 for the whole history; the preset's by
            default.
        sink: of these, sinks; the preset's by default.
        dtype: bfloat16 or float32.
        kv_dtype: how pages are stored: int8, fp8, or as computed.
        sweep: a line for each number of devices from 1 to 256.
    """

    preset: str = "self-forcing"
    model: str | None = None
    ranks: int = 8
    links: str = "nvlink4"
    across: str = "ib-ndr"
    node: int = 8
    machine: str = "h100"
    memory: float | None = None
    worlds: int = 1
    length: int = 10_000
    window: int | None = None
    sink: int | None = None
    dtype: str = "bfloat16"
    kv_dtype: str | None = None
    sweep: bool = False

    def check(self) -> None:
        """Raises ValueError on what cannot be."""
        if self.worlds < 1 or self.length < 0 or (self.memory is not None and self.memory <= 0):
            raise ValueError(
                f"worlds {self.worlds}, length {self.length}, memory {self.memory}: expected 1 or more worlds, 0 or "
                "more latent frames and a memory above 0"
            )
        if self.dtype not in ITEMS:
            raise ValueError(f"dtype {self.dtype!r}: expected one of {', '.join(ITEMS)}")

    @property
    def spec(self) -> WorldSpec:
        """The world, with its window as asked for."""
        spec = world_of(self.preset, self.model)
        if self.window is None and self.sink is None:
            return spec
        if spec.staggered is not None:
            raise ValueError(f"preset {self.preset!r} says itself what a block sees: give no window and no sinks")
        if self.window == 0:
            return replace(spec, kv=KVPolicy(None))
        sink = spec.kv.sink if self.sink is None else self.sink
        window = self.window or (spec.kv.window or 0) + spec.kv.sink + spec.block
        if window < sink + spec.block:
            raise ValueError(f"window {window}: expected at least {sink + spec.block}, the sinks and the block")
        return replace(spec, kv=KVPolicy(window - sink - spec.block, sink))

    @property
    def device(self) -> Machine:
        """The device, of which so much memory may be used."""
        given = read_machine(Path(self.machine)) if self.machine.endswith(".json") else machine(self.machine)
        return replace(given, memory=0.9 * given.memory if self.memory is None else self.memory * 1e9)

    @property
    def numbers(self) -> Numbers:
        return Numbers(ITEMS[self.dtype], kv_dtype=self.kv_dtype)

    def mesh(self, ranks: int) -> Links:
        """Links of so many ranks."""
        return published(self.links, ranks, self.across, self.node)


def world_of(name: str, model: str | None = None) -> WorldSpec:
    """A world by its preset's name.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "doom":
        return WorldSpec.from_dict(read_card(DOOM)["spec"])
    if name == "krea":
        return spec_of(model or "t2v-14b", replace(preset("self-forcing"), window=6), "vae", None, "published")
    chosen = preset(name)
    if not name.startswith("magi"):
        fitting = name if chosen.mode else "t2v-1.3b"
        return spec_of(model or fitting, chosen, "vae", None, "published")
    sizes = replace(LARGE if "24b" in name else SMALL, distill="base" not in name)
    return world_spec(name, sizes, chosen, Preview(4, causal=False), Extras(codec="preview"))


def beside_of(spec: WorldSpec) -> Beside:
    """What the codec takes."""
    if spec.staggered is not None:
        return MAGI
    if spec.rollout is None:
        return Beside()
    area = spec.frame[0] * spec.frame[1] / WAN_AREA
    return Beside(WAN.each, int(WAN.divided * area))


def shapes_of(config: RanksConfig, spec: WorldSpec) -> list[Shape]:
    return [shape_at(spec, config.length)] * config.worlds


def rank_plan(config: RanksConfig, spec: WorldSpec | None = None) -> Plan:
    """The plan.

    Args:
        spec: of the world, where it is not one of the presets as they are.

    Raises:
        ValueError: the settings do not go together, or nothing fits.
    """
    config.check()
    spec, device = spec or config.spec, config.device
    reserved = beside_of(spec).of(config.ranks)
    links = config.mesh(config.ranks)
    return plan(spec, shapes_of(config, spec), links, device.memory, device, config.numbers, reserved=reserved)


def rank_sweep(config: RanksConfig) -> list[Point]:
    """The cheapest exchange of each number of ranks that fills nodes.

    Raises:
        ValueError: the settings do not go together.
    """
    config.check()
    spec = config.spec
    ranks = [n for n in RANKS if n <= config.node or n % config.node == 0]
    return sweep(
        spec, shapes_of(config, spec), config.mesh, config.device, config.numbers, beside_of(spec), ranks
    )  # fmt: skip


def of_option(option: Option) -> dict[str, Any]:
    """An exchange as a row."""
    given = {"exchange": str(option.exchange), "refused": option.refused}
    numbers = {"ms": option.seconds * 1e3, "waiting_ms": option.waiting * 1e3, "calls": option.calls}
    bytes_ = {"sent_bytes_of_a_rank": max(option.sent, default=0), "held_bytes_of_a_rank": option.memory}
    return given if option.refused else given | numbers | bytes_


def frames_a_second(spec: WorldSpec, seconds: float, worlds: int = 1) -> float:
    """Frames of a block over its time, of all worlds."""
    return worlds * spec.block * spec.frames_per_latent / seconds


def line(spec: WorldSpec, point: Point, worlds: int) -> str:
    """One number of ranks."""
    o = point.pick
    if not point.fits:
        return f"{point.ranks:>5}  {'-':>9}  {'-':>7}  {'-':>5}  {o.memory / 1e9:>7.1f}  {o.refused}"
    rate = frames_a_second(spec, o.seconds, worlds)
    return (
        f"{point.ranks:>5}  {o.seconds * 1e3:>9.1f}  {rate:>7.1f}  {100 * point.efficiency:>4.0f}%  "
        f"{o.memory / 1e9:>7.1f}  {o.exchange}"
    )


def main() -> None:
    with cut_short():
        try:
            show(tyro.cli(RanksConfig, description=__doc__))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None


def show(config: RanksConfig) -> None:
    """Print the plan, or the sweep."""
    if not config.sweep:
        print(rank_plan(config))
        print(decoding_line(config.spec, config.ranks, config.worlds, config.dtype))
        return
    points, spec = rank_sweep(config), config.spec
    print(f"{config.preset}, {config.machine}, {config.links}, {config.across}: modelled, not measured\n")
    print(f"{'ranks':>5}  {'ms':>9}  {'frames/s':>7}  {'eff.':>5}  {'GB held':>7}  exchange")
    for point in points:
        print(line(spec, point, config.worlds))


if __name__ == "__main__":
    main()
