"""python -m benchmarks.parallel: every exchange of a world's block on several ranks, against what the planner says.

    python -m benchmarks.parallel --ranks 2                                    # processes here, over Gloo
    python -m benchmarks.parallel --ranks 2 --device cuda:0 --cases self-forcing    # one GPU that they share
    torchrun --nproc-per-node 4 -m benchmarks.parallel --device cuda --cases self-forcing   # a GPU each, over NCCL

Ranks take turns at all exchanges, block by block, so that a machine whose speed drifts is fair to all. Of each: the
slowest rank's median time, bytes and calls of a rank, bytes cached, on CUDA all bytes held (and by formula), and how
far the latents are from one rank's. Links and devices are measured too, on these ranks, and the planner picks by
them. Checked: bytes are the formula's, to the byte; and of two exchanges whose times by formula differ by more than
1.5 times, the faster one is faster. The regret is what the pick takes longer than the best. Decoding in strips is
measured beside it.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import tyro

from benchmarks.machine import describe
from benchmarks.output import cut_short
from benchmarks.rank_decoding import decoded
from benchmarks.rank_report import decode_table, failures, table
from benchmarks.rank_runs import measured, possible
from benchmarks.rank_worlds import case_of
from engine.loading import check_dtype
from inferix_env.record import write_text


@dataclass(frozen=True)
class ParallelConfig:
    """What to measure.

    Attributes:
        ranks: processes that are started here; under torchrun there are as many as it has started.
        cases: worlds: short, long and grouped are small ones; or presets of prompts, at full size.
        device: cpu; cuda for a GPU a rank; or one that they share, such as cuda:0.
        dtype: float32 or bfloat16.
        repeats: blocks of each exchange, of which the median counts.
        decode: measure decoding too.
        out: where to write the rows as JSON.
    """

    ranks: int = 2
    cases: tuple[str, ...] = ("short", "long", "grouped")
    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 5
    decode: bool = True
    out: Path | None = None

    def check(self) -> None:
        """Raises ValueError on what cannot be measured, before any process is started."""
        if self.ranks < 2 or self.repeats < 1 or not self.cases:
            raise ValueError(
                f"ranks {self.ranks}, repeats {self.repeats}, cases {self.cases}: expected 2, 1, 1 or more"
            )
        check_dtype(self.dtype)
        for name in self.cases:
            possible(case_of(name), int(os.environ.get("WORLD_SIZE", self.ranks)))
        device = torch.device(self.device)
        needed = (self.ranks if device.index is None else 1) if device.type == "cuda" else 0
        if "RANK" not in os.environ and torch.cuda.device_count() < needed:
            raise ValueError(
                f"device {self.device!r} for {self.ranks} ranks, and {torch.cuda.device_count()} GPUs are here: name "
                "one that they share, such as cuda:0, or take --device cpu"
            )


def rows(config: ParallelConfig, device: torch.device) -> dict[str, Any]:
    """Everything, on every rank of the default group; all call this together."""
    dtype = check_dtype(config.dtype)
    assert dtype is not None
    cases = [measured(case_of(name), device, dtype, config.repeats) for name in config.cases]
    strips = decoded(device, dtype, config.repeats) if config.decode else []
    head = {"ranks": dist.get_world_size(), "device": str(device), "dtype": config.dtype, "backend": dist.get_backend()}
    return {**head, "cases": cases, "decode": strips, **describe()}


@torch.inference_mode()
def run(config: ParallelConfig, device: torch.device) -> None:
    """Measure; the first rank prints and writes.

    Raises:
        SystemExit: a check failed.
    """
    if device.type == "cpu":  # engines take all cores unless told otherwise
        share = max(1, len(os.sched_getaffinity(0)) // dist.get_world_size())
        torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", str(share))))
    made = rows(config, device)
    if dist.get_rank():
        return
    for case in made["cases"]:
        print(table(case), flush=True)
    print(decode_table(made["decode"]))
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(config.out, json.dumps(made, indent=1) + "\n")
    if wrong := failures(made):
        raise SystemExit("\n".join(wrong))
    print("bytes are the formula's; times rank as predicted wherever that differs by 1.5 times")


def start(config: ParallelConfig) -> None:
    """Run the ranks here, and end as they do."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(started, args=(config, folder), nprocs=config.ranks)
        except torch.multiprocessing.ProcessRaisedException as error:
            cause = str(error).strip().splitlines()[-1]
            raise SystemExit(f"error: rank {error.error_index} failed: {cause}") from None
        except torch.multiprocessing.ProcessExitedException as error:
            raise SystemExit(error.exit_code) from None


def started(rank: int, config: ParallelConfig, folder: str) -> None:
    """One of the processes that are started here."""
    device = torch.device(config.device)
    own = torch.device("cuda", rank) if device.type == "cuda" and device.index is None else device
    begin("nccl" if own != device else "gloo", own, rank=rank, world_size=config.ranks, store=folder)
    finish(config, own)


def launched(config: ParallelConfig) -> None:
    """One of the processes of torchrun."""
    device = torch.device(config.device)
    alone = device.type == "cuda" and device.index is None
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if alone else device
    begin("nccl" if alone else "gloo", own)
    finish(config, own)


def begin(backend: str, device: torch.device, store: str = "", **ranks: int) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place = {"init_method": f"file://{store}/store"} if store else {}
    dist.init_process_group(backend, **place, **ranks)  # type: ignore[arg-type]


def finish(config: ParallelConfig, device: torch.device) -> None:
    try:
        run(config, device)
    finally:
        dist.destroy_process_group()


def main() -> None:
    with cut_short():
        try:
            config = tyro.cli(ParallelConfig, description=__doc__)
            config.check()
        except (ValueError, RuntimeError) as error:
            raise SystemExit(f"error: {error}") from None
        if "RANK" in os.environ:
            launched(config)
            return
        start(config)


if __name__ == "__main__":
    main()
