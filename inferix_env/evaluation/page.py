"""The page of a report: one HTML file that holds all it shows, pictures and clips too, and asks nothing of a network.

Knows results as plain JSON and files beside them; measures nothing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from inferix_env.evaluation.runs import shown
from inferix_env.evaluation.written import number

KINDS = {".png": "image/png", ".webp": "image/webp"}
SHORT = 28  # letters that are kept on one line
IN_BRIEF = 16  # the horizon that the table at the top shows, or the next one that there is

STYLE = """
:root { --ink: #1d2129; --soft: #5b6472; --line: #dde1e7; --accent: #1f6fb4; --paper: #fff; --back: #f5f6f8 }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink) }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px }
h2 { font-size: 22px; margin: 0 0 10px }
h3 { font-size: 16px; margin: 26px 0 8px }
p { margin: 10px 0; max-width: 78ch }
.soft { color: var(--soft) }
nav { margin: 14px 0 22px }
nav a { margin-right: 18px; color: var(--accent) }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px }
section { padding: 22px 24px; margin: 0 0 22px }
figure { margin: 18px 0 }
figure img { max-width: 100%; height: auto; display: block }
figcaption { color: var(--soft); font-size: 14px; margin-top: 6px; max-width: 90ch }
.clips { display: flex; flex-wrap: wrap; gap: 18px }
.clips figure { margin: 6px 0; max-width: 460px }
.clips img { width: 460px; image-rendering: pixelated }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600 }
td.n { text-align: right }
.one { white-space: nowrap }
td .soft { font-size: 12px }
code, pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace }
code { background: var(--back); padding: 1px 4px; border-radius: 3px }
pre { background: var(--back); padding: 10px 12px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere }
@media print { body { background: #fff } section { border: 0; padding: 0; break-inside: avoid } }
"""


def page(report: Mapping[str, Any], folder: Path) -> str:
    """The page of a report whose pictures and clips lie in `folder`.

    Raises:
        ValueError: one of them is missing.
    """
    world, parts = report["world"], report["parts"]
    links = "".join(f'<a href="#{name}">{escape(part["title"])}</a>' for name, part in parts.items())
    body = [
        f"<h1>{escape(world['name'])} against reality</h1>",
        f'<p class="soft">{escape(introduction(world))}</p><nav>{links}<a href="#made">How this was made</a></nav>',
        block("brief", "In brief", [brief(parts)]),
        *(block(name, part["title"], section(part, folder)) for name, part in parts.items()),
        block("made", "How this was made", made(report)),
    ]
    title = escape(f"{world['name']}: report")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def introduction(world: Mapping[str, Any]) -> str:
    height, width = world["frame"]
    held = f"each action held for {world['frame_skip']} of its steps"
    real = f"its real env is {world['env']}, {held}" if world["env"] else "measured on recorded episodes"
    return f"{width} x {height} pixels, {world['fps']:g} steps a second; {real}."


def block(name: str, title: str, parts: Sequence[str]) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def section(part: Mapping[str, Any], folder: Path) -> list[str]:
    """A part: how it was measured, its pictures, clips and tables."""
    clips = [figure(folder / c["file"], c["caption"]) for c in part["clips"]]
    return [
        prose(part["method"]),
        *(figure(folder / p["file"], p["caption"]) for p in part["pictures"]),
        f'<div class="clips">{"".join(clips)}</div>' if clips else "",
        *(f"<h3>{escape(t['title'])}</h3>{table(t['header'], t['rows'])}" for t in part["tables"]),
    ]


def prose(text: str) -> str:
    """Paragraphs with *words* and `code`."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        words = escape(" ".join(paragraph.split()))
        words = re.sub(r"`([^`]+)`", r"<code>\1</code>", words)
        words = re.sub(r"[*]([^*]+)[*]", r"<em>\1</em>", words)
        paragraphs.append(f"<p>{words}</p>")
    return "\n".join(paragraphs)


def figure(path: Path, caption: str) -> str:
    """A picture or clip as part of the page.

    Raises:
        ValueError: the file is missing.
    """
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}; measure that part again (--again)") from None
    source = f"data:{KINDS[path.suffix]};base64,{data}"
    words = escape(caption)
    return f'<figure><img src="{source}" alt="{words}" loading="lazy"><figcaption>{words}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header; columns of numbers to the right."""
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    head = "".join(f"<th>{escape(x)}</th>" for x in header)
    lines = []
    for row in rows:
        cells = zip(row, numeric, strict=True)
        lines.append("".join(f"<td{' class=n' if right else ''}>{worded(number(x))}</td>" for x, right in cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def worded(text: str) -> str:
    """A cell; an interval stands below its number, and short words on one line."""
    found = re.fullmatch(r"(\S+) (\[[^\]]+\])( \S+)?", text)
    if found:
        value, ends, unit = (escape(x or "") for x in found.groups())
        return f'<span class="one">{value}{unit}</span><br><span class="one soft">{ends}</span>'
    return f'<span class="one">{escape(text)}</span>' if len(text) <= SHORT else escape(text)


def brief(parts: Mapping[str, Any]) -> str:
    """The numbers that are a merit of the world, each with what stands beside it."""
    rows = []
    for part in parts.values():
        for m in part["measures"]:
            if m["better"] and m["at"] in (None, shown_horizon(part["measures"], m["name"])):
                rows.append([m["name"], at_words(m["at"]), shown(m), beside(part["measures"], m), WORDS[m["better"]]])
    return table(["measure", "at", "this world [95 % interval]", "beside it", "better is"], rows)


WORDS = {"higher": "higher", "lower": "lower", "one": "close to 1"}


def shown_horizon(measures: Sequence[Mapping], name: str) -> float | None:
    """The horizon of a curve that the table shows."""
    horizons = sorted({m["at"] for m in measures if m["name"] == name and m["better"] and m["at"] is not None})
    later = [h for h in horizons if h >= IN_BRIEF]
    return later[0] if later else horizons[-1] if horizons else None


def at_words(at: float | None) -> str:
    return "" if at is None else f"{at:g} step{'s' * (at != 1)}"


def beside(measures: Sequence[Mapping], m: Mapping) -> str:
    """The baselines of the same name and place."""
    others = [x for x in measures if x["name"] == m["name"] and x["at"] == m["at"] and not x["better"]]
    return "; ".join(f"{x['of']} {number(x['value'])}" for x in others if x["value"] is not None)


def made(report: Mapping[str, Any]) -> list[str]:
    """World, weights, commands, seeds, versions and hardware."""
    world = report["world"]
    head = table(
        ["", ""],
        [
            ["world", world["name"]],
            ["weights, sha256", world["weights"]],
            ["real env", f"{world['env']}, frame skip {world['frame_skip']}, settle {world['settle']}"],
            ["computed", f"{world['device']}, {world['dtype']}"],
        ],
    )
    parts = [head]
    for name, part in report["parts"].items():
        about = part["about"]
        versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
        seed = part["setting"].get("seed")
        words = (
            f"{about['date']}; {part['seconds'] / 60:.1f} minutes; seeds from {seed}; {about['hardware']}; {versions}"
        )
        parts.append(f"<h3>{escape(name)}</h3><pre>{escape(about['command'])}</pre><p class=soft>{escape(words)}</p>")
    return parts
