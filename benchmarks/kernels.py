"""python -m benchmarks.kernels: what one device attains at the shapes that several ranks would each have.

    python -m benchmarks.kernels --case self-forcing --device cuda --machine-out h200.json
    python -m benchmarks.plan_ranks --preset self-forcing --machine h200.json --sweep

Times a layer's products and its attention as each of 1, 2, 4, ... ranks would run them, and whole blocks of the world
on this device alone. What the planner reckons with is made of these (engine/parallel/machines.py): rates at one rank's
shapes, the memory's bandwidth, the least that a layer takes, and how often it reads and writes its tokens besides: so
much that a block on one rank takes what it was measured to take. No second device is needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.devices import block_seconds, calibrated
from benchmarks.machine import describe
from benchmarks.output import cut_short
from benchmarks.rank_kernels import Timer, rows
from benchmarks.rank_worlds import case_of
from engine.loading import check_dtype
from engine.parallel.machines import Machine
from inferix_env.record import write_text


@dataclass(frozen=True)
class KernelConfig:
    """What to time.

    Attributes:
        case: a preset of prompts at full size; or short, long, grouped: small worlds for a CPU.
        device: cuda, cpu, ...
        dtype: bfloat16 or float32.
        ranks: how many would share the world.
        repeats: of which the fastest counts.
        out: where to write the rows as JSON.
        machine_out: where to write the planner's figures of this device.
    """

    case: str = "self-forcing"
    device: str = "cuda"
    dtype: str = "bfloat16"
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 10
    out: Path | None = None
    machine_out: Path | None = None


def show(made: list[dict[str, Any]], machine: Machine) -> None:
    columns = f"{'tokens':>7} {'products':>10} {'TF/s':>7} {'attention':>10} {'TF/s':>7}"
    print(f"{'exchange':18} {columns}   one layer, one pass")
    for r in made:
        print(
            f"{r['exchange']:18} {r['tokens']:>7,} {r['products_ms']:>7.2f} ms {r['products_tflops']:>7.1f} "
            f"{r['attention_ms']:>7.2f} ms {r['attention_tflops']:>7.1f}"
        )
    print(f"\n{machine}")


@torch.inference_mode()
def run(config: KernelConfig) -> None:
    """Time everything, print it and write it."""
    dtype = check_dtype(config.dtype)
    assert dtype is not None
    case = case_of(config.case)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("no CUDA device is here: give --device cpu, and a small case such as long")
    timer = Timer(torch.device(config.device), dtype, config.repeats)
    made, machine = rows(timer, case.spec, config.ranks), calibrated(timer, case, block_seconds(timer, case))
    show(made, machine)
    if config.out:
        table = {"case": case.name, "dtype": config.dtype, "rows": made, "machine": asdict(machine), **describe()}
        write(config.out, table)
    if config.machine_out:
        write(config.machine_out, asdict(machine))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")


def main() -> None:
    with cut_short():
        try:
            run(tyro.cli(KernelConfig, description=__doc__))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
