"""The command: replays every file and prints each output's difference; exits 1 on any miss."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from benchmarks.parity import rollouts
from benchmarks.parity.case import Case

KINDS: dict[str, Callable[[Case, str], None]] = {
    "causal_rollout": rollouts.replay,
    "causal_rollout_prompt_switch": rollouts.replay,
    "mg2_rollout": rollouts.replay,
}


@dataclass(frozen=True)
class ParityConfig:
    """Replay recordings of published code.

    Attributes:
        files: recorded cases, or folders of them.
        device: where to run.
        quiet: print only the worst output of each file.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    device: str = "cpu"
    quiet: bool = False


def replay(path: Path, device: str) -> Case:
    """Replay one file.

    Raises:
        ValueError: the file is none of the format, or of an unknown kind.
    """
    case = Case.read(path)
    kind = case.info["kind"]
    if kind not in KINDS:
        raise ValueError(f"{path}: kind {kind!r} is unknown; known are {', '.join(KINDS)}")
    KINDS[kind](case, device)
    return case


def report(case: Case, quiet: bool) -> bool:
    """Print a case's rows; True if all passed and nothing was left out."""
    rows = sorted(case.rows, key=lambda r: -r.share)
    missing = case.missing()
    passed = all(row.passed for row in rows) and not missing
    atol, rtol = case.tolerance
    print(f"{case.path.name}: {'ok' if passed else 'MISS'}, {len(rows)} outputs, tolerance {atol:g} + {rtol:g} |want|")
    for row in rows[:1] if quiet else rows:
        mark = "" if row.passed else "  MISS"
        note = f"  ({row.note})" if row.note else ""
        print(f"  {row.name:32} max abs {row.largest:9.3g}  rel rms {row.relative:9.3g}  {row.share:7.1%}{mark}{note}")
    for name in missing:
        print(f"  {name:32} MISS: nothing was computed to compare with")
    return passed


def main(config: ParityConfig) -> int:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    paths = [p for f in config.files for p in (sorted(f.glob("*.safetensors")) if f.is_dir() else [f])]
    bad = 0
    for path in paths:
        try:
            bad += not report(replay(path, config.device), config.quiet)
        except ValueError as error:
            print(f"{path.name}: MISS: {error}", file=sys.stderr)
            bad += 1
    print(f"{len(paths) - bad} of {len(paths)} files pass")
    return 1 if bad or not paths else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ParityConfig)))
