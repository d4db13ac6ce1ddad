"""Runs: what a part of a report was measured of, by what and on what, and its files.

A part is one JSON (PART.json) with its pictures and clips beside it. Every file is written under a temporary name and
renamed. Knows worlds as folders and findings; measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import inferix_env
from engine import WorldModel, WorldSpec, read_card
from inferix_env import worlds
from inferix_env.evaluation import written
from inferix_env.evaluation.findings import Findings

FORMAT, VERSION = "inferix_env evaluation", 1
# What of a command's settings numbers do not depend on, or is said with the world.
PLACES = ("world", "env", "device", "dtype", "out", "pages", "again")
LIBRARIES = ("gymnasium", "numpy", "torch")


@dataclass(frozen=True, eq=False)
class Opened:
    """A world to be measured."""

    folder: Path
    card: dict[str, Any]
    model: WorldModel

    @property
    def spec(self) -> WorldSpec:
        return self.model.spec


def open_world(world: str, device: str, dtype: str | None) -> Opened:
    """A shipped world's name, or a world folder.

    Raises:
        ValueError: there is none, or it cannot run so, or makes several frames a step.
    """
    from inferix_env.evaluation.dreaming import check_world

    folder = worlds.find(world)
    model = worlds.model(folder, device, dtype)
    check_world(model.spec, model)
    return Opened(folder, read_card(folder), model)


def folder_of(out: Path | None, world: str) -> Path:
    """Where a world's parts are kept: as asked, or out/evaluation/NAME."""
    return (out or Path("out/evaluation") / Path(world).name.replace("-", "_")).expanduser()


def setting_of(opened: Opened, config: Any) -> dict[str, Any]:
    """What the numbers depend on: the world, and the command's settings but for where they go."""
    data = opened.card.get("data", {})
    given = {x.name: getattr(config, x.name) for x in fields(config) if x.name not in PLACES}
    return {
        "world": opened.spec.name,
        "weights": hashlib.sha256((opened.folder / "model.safetensors").read_bytes()).hexdigest(),
        "env": config.env or data.get("env"),
        "frame_skip": data.get("frame_skip", 1),
        "settle": data.get("settle", 0),
        "device": str(opened.model.device),
        "dtype": str(opened.model.dtype).removeprefix("torch."),
        **{name: plain(value) for name, value in given.items()},
    }


def begin(config: Any, part: str, **more: Any) -> tuple[Opened, Path, dict[str, Any], dict[str, Any] | None]:
    """A part's world, its folder, what its numbers depend on (`more` among it), and the part as it was kept, or None.

    Raises:
        ValueError: the world cannot be measured with these settings, or what was kept cannot be read.
    """
    opened = open_world(config.world, config.device, config.dtype)
    folder, setting = folder_of(config.out, config.world), setting_of(opened, config) | more
    return opened, folder, setting, None if config.again else found(folder, part, setting)


def trained_seeds(data: Mapping[str, Any]) -> int:
    """The first start seed that training left alone, validation included; 0 where the card does not say."""
    count = int(data.get("num_seeds", 0))
    return int(data.get("first_seed", 0)) + count + count // 9


def check_seed(seed: int, opened: Opened) -> None:
    """Raise ValueError for a first seed that the world was trained on."""
    trained = trained_seeds(opened.card.get("data", {}))
    if seed < trained:
        raise ValueError(f"--seed {seed}: {opened.spec.name} was trained on seeds below {trained}")


def plain(value: Any) -> Any:
    """A setting as JSON can say it."""
    if isinstance(value, tuple | list):
        return [plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


def about(model: WorldModel | None = None) -> dict[str, Any]:
    """The command, the versions and the hardware, in words."""
    device = model.device if model else torch.device("cpu")
    return {
        "command": " ".join(["python -m inferix_env.evaluation", *map(quoted, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "hardware": machine(device),
        "versions": {
            "inferix_env": inferix_env.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def quoted(argument: str) -> str:
    """An argument as a shell takes it."""
    return argument if not set(argument) & set(" *\"'()") else f"'{argument}'"


def machine(device: torch.device) -> str:
    """The processor that computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def keep(folder: Path, part: str, findings: Findings, setting: dict, model: WorldModel, seconds: float) -> dict:
    """Write a part with its pictures and clips; return it as plain JSON."""
    kept = written.keep(folder, findings, seconds)
    data = {"format": FORMAT, "version": VERSION, "part": part, "setting": setting, "about": about(model), **kept}
    written.write_json(folder / f"{part}.json", data)
    return data


def read(path: Path) -> dict[str, Any]:
    """A JSON that an evaluation wrote.

    Raises:
        ValueError: it cannot be read or is none.
    """
    try:
        data = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: no JSON: {error.msg}") from None
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of python -m inferix_env.evaluation fidelity, ranking, drift or report")
    if data.get("version") != VERSION:
        raise ValueError(f"{path} is of version {data.get('version')}: this program reads {VERSION}; measure again")
    return dict(data)


def found(folder: Path, part: str, setting: dict[str, Any]) -> dict[str, Any] | None:
    """A part that was measured before with the same setting, or None."""
    path = folder / f"{part}.json"
    if not path.is_file():
        return None
    data = read(path)
    return data if data.get("setting") == json.loads(json.dumps(setting)) else None


def tell(data: dict[str, Any], folder: Path) -> None:
    """Print a part's measures that are of the world itself, and where all of it stands."""
    rows = [[m["name"], m["of"], "" if m["at"] is None else f"{m['at']:g}", shown(m)] for m in data["measures"]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"wrote {folder / data['part']}.json ({data['seconds']:.0f} s)")


def shown(measure: Mapping[str, Any]) -> str:
    """A measure's value, interval and unit, as a line shows them."""
    if measure["value"] is None:
        return "not known"
    number, unit = written.number, f" {measure['unit']}" if measure["unit"] else ""
    ends = "" if measure["low"] is None else f" [{number(measure['low'])}, {number(measure['high'])}]"
    return f"{number(measure['value'])}{ends}{unit}"
