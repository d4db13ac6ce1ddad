"""Results on disk: results.json, pictures, and the Markdown page that is made from the two.

Every file is written under a temporary name and renamed. Knows findings as plain JSON; measures nothing.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inferix_env.evaluation.findings import Findings, plain

WEBP_QUALITY = 82


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, data: Any) -> None:
    write(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def keep(folder: Path, findings: Findings, seconds: float) -> dict[str, Any]:
    """Write a section's pictures and clips into `folder`; return the section as plain JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in findings.pictures.items():
        write_picture(folder / f"{name}.png", [picture.pixels], format="PNG", optimize=True)
    for name, clip in findings.clips.items():
        timing = {"save_all": True, "duration": round(1000 / clip.fps), "loop": 0}
        write_picture(folder / f"{name}.webp", clip.frames, format="WEBP", quality=WEBP_QUALITY, method=4, **timing)
    return plain(
        {
            "title": findings.title,
            "method": findings.method,
            "checks": [check.to_dict() for check in findings.checks],
            "numbers": findings.numbers,
            "tables": [{"title": t.title, "header": t.header, "rows": t.rows} for t in findings.tables],
            "pictures": [{"file": f"{name}.png", "caption": p.caption} for name, p in findings.pictures.items()],
            "clips": [{"file": f"{name}.webp", "caption": c.caption} for name, c in findings.clips.items()],
            "measures": [measure.to_dict() for measure in findings.measures],
            "seconds": round(seconds, 1),
        }
    )


def write_picture(path: Path, frames: Sequence[np.ndarray] | np.ndarray, **options: Any) -> None:
    """Write frames uint8 [h, w, 3] as one picture, or as one that moves."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    temporary = path.with_name(path.name + ".tmp")
    if others:
        options["append_images"] = others
    first.save(temporary, **options)
    os.replace(temporary, path)


def read_results(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Earlier results of the same setting to add sections to, or fresh ones.

    Raises:
        ValueError: the file is there and is not JSON.
    """
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}): move it away or give another --out") from None
        if found.get("setting") == setting:
            return found
    return {"setting": setting, "sections": {}}


def checks_of(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """All checks, each with its section's title."""
    return [(section["title"], check) for section in results["sections"].values() for check in section["checks"]]


def number(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2g}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers to the right."""
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        header,
        ["--:" if right else "---" for right in numeric],
        *[[number(cell) for cell in row] for row in rows],
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def target_rows(results: dict[str, Any]) -> list[list[Any]]:
    return [
        [
            title,
            c["name"],
            f"{number(c['value'])} {c['unit']}".strip(),
            c["target"],
            "pass" if c["passed"] else "**fail**",
        ]
        for title, c in checks_of(results)
    ]


def page(results: dict[str, Any], pictures: str, agents: Sequence[Mapping[str, Any]] = ()) -> str:
    """The report in Markdown.

    Args:
        pictures: where they lie, as seen from the page.
        agents: what the world's card says of them (`agents` of world.json): a mapping a row, all of the same keys.
    """
    setting, checks = results["setting"], checks_of(results)
    passed = sum(check["passed"] for _, check in checks)
    parts = [f"# {setting['world']} against {setting['env']}", introduction(setting, results)]
    parts += [f"## Targets\n\n{passed} of {len(checks)} met."]
    parts += [table(["section", "measure", "value", "target", ""], target_rows(results))]
    for section in results["sections"].values():
        parts += [f"## {section['title']}", wrap(section["method"])]
        for t in section["tables"]:
            parts += [f"**{t['title']}**", table(t["header"], t["rows"])]
        for picture in section["pictures"]:
            name, caption = picture["file"], picture["caption"]
            parts.append(f"![{caption}]({pictures}{name})\n\n*{caption}*")
    if agents:
        told = "What agents made in the dream and in the real env, as the world's card has it (not of this command)."
        rows = [[row.get(key, "") for key in agents[0]] for row in agents]
        parts += ["## Agents", told, table(list(agents[0]), rows)]
    return "\n\n".join(parts) + "\n"


def introduction(setting: dict[str, Any], results: dict[str, Any]) -> str:
    height, width = setting["frame"]
    trained = setting["trained_seeds"]
    unseen = f"; training took seeds below {trained:,}" if trained else ""
    minutes = sum(section["seconds"] for section in results["sections"].values()) / 60
    text = f"""The world `{setting["world"]}` ({width} x {height} pixels, weights sha256 {setting["weights"][:12]})
against the real env at the same size and rate (frame skip {setting["frame_skip"]}), on episodes whose start seeds
count from {setting["seed"]:,} on{unseen}. Measured in {minutes:.0f} minutes on {setting["device"]} in
{setting["dtype"]}, {results["machine"]}; torch {results["torch"]}; {results["date"]}. The numbers and more of them
are in `results.json`."""
    command = f"    python -m inferix_env.evaluation --world {setting['world']}"
    trial = "**A quick trial: a few episodes and shorter dreams than a full run. Its numbers say nothing.**"
    return "\n\n".join([wrap(text), command + " --quick", trial] if setting["quick"] else [wrap(text), command])


def wrap(text: str) -> str:
    """Paragraphs, each broken anew into lines of at most 119 characters."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(textwrap.fill(p, 119, break_long_words=False, break_on_hyphens=False) for p in paragraphs)


def card_entry(results: dict[str, Any]) -> dict[str, Any]:
    """What a world's card keeps of the results."""
    setting = results["setting"]
    return {
        **{key: setting[key] for key in ("env", "seed", "dtype", "weights")},
        "date": results["date"],
        "checks": [{"section": title, **check} for title, check in checks_of(results)],
    }


def print_targets(results: dict[str, Any]) -> None:
    """The table of targets, as plain text."""
    rows = [["section", "measure", "value", "target", ""], *target_rows(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = [cell.replace("**", "").ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    passed = [check["passed"] for _, check in checks_of(results)]
    print(f"{sum(passed)} of {len(passed)} targets met")
