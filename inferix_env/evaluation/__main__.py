"""python -m inferix_env.evaluation COMMAND: how true a world is to its game, and how long it stays so.

    world      a world against fixed targets, section by section (also without the word: --world NAME)
    fidelity   the dream against reality from the same frames under the same actions, over the horizon
    ranking    whether the dream ranks policies as reality does
    drift      a long free dream, scored as a stream
    damage     how far known damage moves each scorer
    lvbench    LV-Bench: text worlds led through captions, scored
    report     fidelity, ranking and drift of a world as one HTML page and one JSON
    compare    two JSONs: what changed beyond noise; exits 1 on a regression

Each takes --help. Exit status: 2 for a wrong setting or input, 130 for Ctrl-C.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

# The module of each command; it has `Config`, a dataclass, and `run(config) -> exit status`.
COMMANDS = {
    "world": "world",
    "fidelity": "fidelity",
    "ranking": "ranking",
    "drift": "drifting",
    "damage": "damage",
    "lvbench": "lvbench.command",
    "report": "report",
    "compare": "compare",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in ([], ["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    name = given.pop(0) if given and not given[0].startswith("-") else "world"
    if name not in COMMANDS:
        return fail(f"error: no command {name!r}: expected one of {', '.join(COMMANDS)}", 2)
    module = importlib.import_module(f"inferix_env.evaluation.{COMMANDS[name]}")
    program = f"python -m inferix_env.evaluation {name}"
    try:
        return module.run(tyro.cli(module.Config, args=given, prog=program, description=module.__doc__))
    except (ValueError, OSError) as error:
        return fail(f"error: {' '.join(str(error).split())}", 2)
    except KeyboardInterrupt as stop:
        return fail(f"stopped: {stop}" if str(stop) else "stopped", 130)


def fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
