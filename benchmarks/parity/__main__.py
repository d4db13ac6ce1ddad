"""The command: replays every file and prints how far each output is; exits 1 on any miss."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.parity import (
    codecs,
    encoders,
    formulas,
    magi_codec,
    magi_formulas,
    magi_networks,
    magi_rollouts,
    networks,
    rollouts,
)
from benchmarks.parity.case import Case
from engine.loading import check_device

KINDS: dict[str, Callable[[Case, str], None]] = {
    "primitives": formulas.replay,
    "scheduler": formulas.replay,
    "dit_forward": networks.replay_forward,
    "mg2_forward": networks.replay_calls,
    "causal_rollout": rollouts.replay,
    "causal_rollout_prompt_switch": rollouts.replay,
    "mg2_rollout": rollouts.replay,
    "vae_decode": codecs.replay,
    "vae_encode": codecs.replay,
    "text_encoder": encoders.replay,
    "clip_vision": encoders.replay,
    "magi_forward": magi_networks.replay_forward,
    "magi_cached": magi_networks.replay_cached,
    "magi_fp8": magi_networks.replay_fp8,
    "magi_rollout": magi_rollouts.replay,
    "magi_schedule": magi_formulas.replay_schedule,
    "magi_text": magi_formulas.replay_text,
    "magi_vae": magi_codec.replay,
}


@dataclass(frozen=True)
class ParityConfig:
    """Replay recordings of published code, and print for every recorded output the largest absolute difference, the
    root mean square of the difference over that of the output, and the largest share of the tolerance that an element
    takes: at 100% it just passes. Outputs in bfloat16 are compared by statistics against the spread between kernels.
    Exits with 1 if an output misses, has nothing to be compared with, or a file cannot be replayed.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Recorded cases (.safetensors), or folders of them."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, ..."""
    quiet: bool = False
    """Of each file print only the worst output, and what misses."""


def replay(path: Path, device: str) -> tuple[Case | None, str]:
    """Replay one file: the case with what was compared, and what kept it from going on, if something did."""
    case = None
    try:
        case = Case.read(path)
        kind = case.info["kind"]
        if kind not in KINDS:
            return None, f"its kind {kind!r} is unknown; known are {', '.join(KINDS)}"
        KINDS[kind](case, device)
    except ValueError as error:
        return case, str(error)
    except KeyError as error:
        return case, f"the recording lacks {error}"
    # A recording may contradict itself in ways that only show where it is used: the other files go on.
    except Exception as error:
        return case, f"could not be replayed to its end ({type(error).__name__}: {error})"
    return case, ""


def report(path: Path, case: Case | None, problem: str, seconds: float, quiet: bool) -> bool:
    """Print a file's rows; True if all passed and nothing was left out."""
    rows = sorted(case.rows, key=lambda row: -row.share) if case else []
    missing = case.missing() if case else []
    passed = not problem and all(row.passed for row in rows) and not missing
    told = f"{len(rows)} outputs of {case.info['kind']}, tolerance {case.told}, {seconds:.1f} s" if case else ""
    print(f"{path}: {'ok' if passed else 'MISS'}: {' '.join(problem.split()) or told}")
    for row in rows:
        if not quiet or row is rows[0] or not row.passed:
            print(row)
    for name in missing if not problem else ():
        print(f"  {name:32} MISS: nothing was computed to compare with")
    if missing and problem:
        print(f"  {len(missing)} outputs were not compared: {', '.join(missing)}")
    return passed


def paths_of(files: tuple[Path, ...]) -> list[Path]:
    """The files, and those in folders.

    Raises:
        ValueError: there is none.
    """
    paths: list[Path] = []
    for given in files:
        found = sorted(given.rglob("*.safetensors")) if given.is_dir() else [given]
        if not found:
            raise ValueError(f"{given}: no *.safetensors in this folder")
        paths += found
    if not paths:
        raise ValueError("no files: give recorded cases, or a folder of them")
    return paths


def main(config: ParityConfig) -> int:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        check_device(config.device)
        paths = paths_of(config.files)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    passed, outputs, begin = 0, 0, time.perf_counter()
    for path in paths:
        start = time.perf_counter()
        case, problem = replay(path, config.device)
        passed += report(path, case, problem, time.perf_counter() - start, config.quiet)
        outputs += len(case.rows) if case else 0
    seconds = time.perf_counter() - begin
    print(f"{passed} of {len(paths)} files pass; {outputs} outputs compared in {seconds:.0f} s on {config.device}")
    return 0 if passed == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ParityConfig, prog="python -m benchmarks.parity")))
