"""plan(spec, shapes, links, memory): which exchange makes the next block soonest, by formula, and when to ask again.

Pure and deterministic: ranks that plan by the same figures choose the same. Knows spec and costs; no tensors, no
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.parallel.layout import Exchange, Numbers
from engine.parallel.links import Links
from engine.parallel.machines import MACHINES, Machine
from engine.parallel.prices import Option, Setting, options
from engine.parallel.shapes import Shape, grown
from engine.parallel.table import Row, table
from engine.spec import WorldSpec

FURTHEST = 1 << 16  # latent frames that a crossover is looked for within


@dataclass(frozen=True)
class Crossover:
    """Where another exchange becomes cheaper, as histories grow.

    Attributes:
        history: latent frames that the world which sees most then sees.
        exchange: the cheaper one; None where nothing fits in memory any longer.
    """

    history: int
    exchange: Exchange | None

    def __str__(self) -> str:
        if self.exchange is None:
            return f"from {self.history:,} latent frames of history on nothing fits in memory"
        return f"from {self.history:,} latent frames of history on: {self.exchange}"


@dataclass(frozen=True)
class Plan:
    """What was chosen, what else there was, and when to ask again."""

    name: str
    machine: Machine
    links: Links
    shapes: tuple[Shape, ...]
    pick: Option
    others: tuple[Option, ...]
    crossover: Crossover | None

    @property
    def exchange(self) -> Exchange:
        return self.pick.exchange

    def outgrown(self, shapes: Sequence[Shape]) -> bool:
        """Whether to plan again: other worlds, or a history past the crossover."""
        if len(shapes) != len(self.shapes) or [s.new for s in shapes] != [s.new for s in self.shapes]:
            return True
        return self.crossover is not None and max(s.history for s in shapes) >= self.crossover.history

    def __str__(self) -> str:
        return table(self.headline, [self.row(o) for o in (self.pick, *self.others)], self.footer)

    @property
    def headline(self) -> str:
        seen = max(s.history + s.new for s in self.shapes)
        worlds = f"{len(self.shapes)} worlds" if len(self.shapes) > 1 else "1 world"
        figures = "measured" if self.machine.measured and self.links.measured else "modelled, not measured"
        return (
            f"{self.name}: {worlds}, block of {self.shapes[0].new}, {seen} latent frames seen; {self.links.ranks} x "
            f"{self.machine.name} over {self.links.name}; figures {figures}"
        )

    @property
    def footer(self) -> str:
        return str(self.crossover) if self.crossover else "no longer history makes another one cheaper"

    def row(self, option: Option) -> Row:
        sent, o = max(option.sent, default=0), option
        if o.refused:
            return Row(str(o.exchange), note=o.refused)
        return Row(str(o.exchange), o.seconds, o.waiting, sent, o.calls, o.memory, self.remark(o))

    def remark(self, option: Option) -> str:
        """What an option costs more than the pick."""
        padding = f"{option.padded:.2f} x the heads, filled up with zeros; " if option.padded > 1 else ""
        if option == self.pick:
            return padding + "chosen"
        waits = option.waiting - self.pick.waiting
        computes = option.seconds - option.waiting - (self.pick.seconds - self.pick.waiting)
        what, more = ("waits", waits) if waits >= computes else ("computes", computes)
        if option.seconds <= self.pick.seconds:
            return f"{padding}as fast, and sends more"
        ratio = option.seconds / self.pick.seconds
        return f"{padding}{ratio:.2f} x as long: {what} {more * 1e3:,.3g} ms longer"


def plan(
    spec: WorldSpec,
    shapes: Sequence[Shape],
    links: Links,
    memory: float,
    machine: Machine = MACHINES["h200"],
    numbers: Numbers | None = None,
    weights: int | None = None,
    reserved: int = 0,
) -> Plan:
    """Price every exchange for the next block of some worlds, and choose the cheapest that fits.

    Args:
        shapes: of each world's block (see `shape_at`).
        links: of the mesh, and how many ranks it has.
        memory: bytes of a rank.
        numbers: bytes of activations, partial outputs and pages; bf16 as computed by default.
        weights: bytes of the denoiser on every rank; by its sizes by default.
        reserved: bytes that a rank needs besides, such as a codec's.

    Raises:
        ValueError: there are no worlds, or nothing fits.
    """
    setting = Setting(spec, links, memory, machine, numbers or Numbers(), weights, reserved)
    pick, *others = options(setting, shapes)
    if pick.refused:
        least = min((o.memory for o in (pick, *others) if o.memory), default=0)
        raise ValueError(
            f"no exchange over {links.ranks} ranks fits into {memory / 1e9:.1f} GB a rank; the least needs "
            f"{least / 1e9:.1f} GB: take more ranks, fewer worlds, a smaller window, or kv_dtype='int8'"
        )
    return Plan(spec.name, machine, links, tuple(shapes), pick, tuple(others), crossover(setting, shapes, pick))


def crossover(setting: Setting, shapes: Sequence[Shape], pick: Option) -> Crossover | None:
    """The shortest longer history at which another option is cheaper, or nothing fits.

    Histories of all worlds grow together, as far as the policy shows them. Looked for in doubling strides, then by
    halving: of two changes within a stride the later may be found.
    """
    policy, last = setting.spec.kv, 0
    room = [None if policy.span is None else max(0, policy.span - s.history) for s in shapes]
    most = FURTHEST if None in room else max(r for r in room if r is not None)
    step = 1
    while last < most:
        following = min(last + step, most)
        if best(setting, shapes, following) != pick.exchange:
            return bisected(setting, shapes, pick, last, following)
        last, step = following, 2 * step
    return None


def bisected(setting: Setting, shapes: Sequence[Shape], pick: Option, low: int, high: int) -> Crossover:
    """The first of low + 1 .. high further frames at which the pick is another."""
    while high - low > 1:
        middle = (low + high) // 2
        if best(setting, shapes, middle) == pick.exchange:
            low = middle
        else:
            high = middle
    history = max(grown(s, high, setting.spec.kv).history for s in shapes)
    return Crossover(history, best(setting, shapes, high))


def best(setting: Setting, shapes: Sequence[Shape], frames: int) -> Exchange | None:
    """The cheapest exchange once histories are so many latent frames longer; None if nothing fits."""
    option = options(setting, [grown(s, frames, setting.spec.kv) for s in shapes])[0]
    return None if option.refused else option.exchange
