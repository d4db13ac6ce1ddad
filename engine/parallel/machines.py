"""What one device computes, and how fast: published figures, or what was measured on a device. Values only.

A published peak is not what a kernel attains. `FRACTIONS` of it are assumed: 0.71 in large products and 0.63 in
attention, which is 700 and 620 TF/s of an H100's 989 (cuDNN and FlashAttention-3, forward, head width 128, as their
authors measured). Peaks are dense bf16 with float32 sums, from NVIDIA's data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass

FRACTIONS = (0.71, 0.63)
LAUNCHES, HIDDEN = 50e-6, 0.8


@dataclass(frozen=True)
class Machine:
    """One device.

    Attributes:
        linears, attention: floating-point operations a second that products and attention attain.
        hbm: bytes a second of its memory.
        memory: bytes of it.
        layer: seconds that a layer takes at least, however little it computes: some fifteen kernels one after another.
        traffic: how often a layer reads or writes its tokens outside of products (25 to 60 GB in a pass of Wan-1.3B
            run eagerly is 60 to 140 times).
        hidden: how much of a transfer beside which something is computed costs nothing: the rest is what its kernels
            and its reads take from the computation.
        measured: figures of this very machine, and not assumed ones.
    """

    name: str
    linears: float
    attention: float
    hbm: float
    memory: float
    layer: float = LAUNCHES
    traffic: float = 60.0
    hidden: float = HIDDEN
    measured: bool = False

    def __post_init__(self) -> None:
        if min(self.linears, self.attention, self.hbm, self.memory) <= 0 or min(self.layer, self.traffic) < 0:
            raise ValueError(f"{self}: expected rates and memory above 0, layer and traffic of 0 or more")
        if not 0 <= self.hidden <= 1:
            raise ValueError(f"hidden {self.hidden}: expected a share from 0 to 1")

    def exposed(self, transfer: float, computing: float) -> float:
        """Seconds that a transfer adds to a computation beside which it runs."""
        beside = min(transfer, computing)
        return transfer - beside + (1 - self.hidden) * beside


def published(name: str, peak: float, hbm: float, memory: float) -> Machine:
    """A device by its data sheet."""
    return Machine(name, FRACTIONS[0] * peak, FRACTIONS[1] * peak, hbm, memory)


MACHINES = {
    "h100": published("H100 SXM", 989e12, 3.35e12, 80e9),
    "h200": published("H200", 989e12, 4.8e12, 141e9),
    "b200": published("B200", 2250e12, 8e12, 180e9),
    "a100": published("A100 80 GB", 312e12, 2.04e12, 80e9),
    "4090": published("RTX 4090", 165e12, 1.01e12, 24e9),
}


def machine(name: str) -> Machine:
    """The device of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in MACHINES:
        raise ValueError(f"machine {name!r}: expected one of {', '.join(MACHINES)}")
    return MACHINES[name]
