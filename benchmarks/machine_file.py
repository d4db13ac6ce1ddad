"""A device that was measured, in a file: what benchmarks.kernels writes and plans read."""

from __future__ import annotations

import json
from pathlib import Path

from engine.parallel.machines import Machine


def read_machine(path: Path) -> Machine:
    """A device that was measured.

    Raises:
        ValueError: there is no such file, or it holds none.
    """
    try:
        return Machine(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no device that benchmarks.kernels measured: {error}") from None
