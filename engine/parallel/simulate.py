"""The planner's costs over 1 to 256 devices: islands of a node's ranks, a network between them. Pure.

Step time, efficiency and memory are modelled, not measured: published figures, and assumed fractions of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.parallel.layout import Exchange, Numbers
from engine.parallel.links import Links
from engine.parallel.machines import Machine
from engine.parallel.prices import Option, Setting, options, price
from engine.parallel.shapes import Shape
from engine.spec import WorldSpec

RANKS = (1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Beside:
    """What ranks need memory for besides the denoiser, in bytes: on each of them, and divided among them."""

    each: int = 0
    divided: int = 0

    def of(self, ranks: int) -> int:
        return self.each + -(-self.divided // ranks)


@dataclass(frozen=True)
class Point:
    """One number of ranks.

    Attributes:
        pick: the cheapest exchange that uses all of them; the one that needs least memory where all are refused.
        alone: seconds of a block on one rank, as if it fitted.
    """

    ranks: int
    pick: Option
    alone: float

    @property
    def fits(self) -> bool:
        return not self.pick.refused

    @property
    def speedup(self) -> float:
        """Over one rank; 0 where nothing fits."""
        return self.alone / self.pick.seconds if self.fits else 0.0

    @property
    def efficiency(self) -> float:
        """The share of the ranks' time that is not lost, 0 to 1."""
        return self.speedup / self.ranks


def sweep(
    spec: WorldSpec,
    shapes: Sequence[Shape],
    links: Callable[[int], Links],
    machine: Machine,
    numbers: Numbers | None = None,
    beside: Beside | None = None,
    ranks: Sequence[int] = RANKS,
) -> list[Point]:
    """The cheapest exchange over each number of ranks.

    Args:
        links: of so many ranks.
        beside: what ranks need memory for besides the denoiser.

    Raises:
        ValueError: links cannot be made of a number of ranks.
    """
    numbers, beside = numbers or Numbers(), beside or Beside()
    made = []
    for count in ranks:
        setting = Setting(spec, links(count), machine.memory, machine, numbers, reserved=beside.of(count))
        alone = price(setting, shapes, Exchange())
        together = [o for o in options(setting, shapes) if o.exchange.ranks == count]
        fitting = [o for o in together if not o.refused]
        pick = fitting[0] if fitting else min(together, key=lambda o: o.memory or float("inf"))
        made.append(Point(count, pick, alone.seconds))
    return made


def least(points: Sequence[Point], seconds: float) -> Point | None:
    """The fewest ranks that make a block in so many seconds."""
    return next((p for p in points if p.fits and p.pick.seconds <= seconds), None)


def furthest(points: Sequence[Point], efficiency: float = 0.5) -> Point | None:
    """The most ranks that are still so efficient."""
    return next((p for p in reversed(points) if p.fits and p.efficiency >= efficiency), None)
