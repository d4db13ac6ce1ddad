"""What benchmarks.parallel measured, as tables, and what of it is not as the formulas say."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

APART = 1.5  # predictions that differ by more have to be right about which is faster


def table(case: dict[str, Any]) -> str:
    """One case: a line an exchange."""
    head = (
        f"\n{case['case']}: a block of {case['new']} behind {case['history']} latent frames; picked: {case['pick']}, "
        f"{100 * case['regret']:.0f} % slower than the best\n"
    )
    heads = ("exchange", "ms", "predicted", "MB sent", "calls", "MB cached", "GB held", "off")
    rows = [
        (
            e["exchange"],
            f"{e['ms']:.1f}",
            f"{e['predicted_ms']:.1f}",
            f"{max(e['sent_bytes']) / 1e6:.3f}" + ("" if same_bytes(e) else " (!)"),
            f"{e['calls']:,}",
            f"{e['cache_bytes'] / 1e6:.1f}",
            f"{e['held_bytes'] / 1e9:.2f} ({e['predicted_held_bytes'] / 1e9:.2f})" if e["held_bytes"] else "-",
            f"{e['off']:.0e}",
        )
        for e in sorted(case["exchanges"], key=lambda e: e["ms"])
    ]
    return head + columns([heads, *rows])


def decode_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a codec."""
    if not rows:
        return ""
    heads = ("decoding", "one rank", "ms", "MB sent", "calls", "levels off")
    lines = [
        (
            r["codec"],
            f"{r['one_rank_ms']:.1f}",
            f"{r['ms']:.1f}",
            f"{max(r['sent_bytes']) / 1e6:.3f}" + ("" if same_bytes(r) else " (!)"),
            f"{r['calls']:,}",
            str(r["levels_off"]),
        )
        for r in rows
    ]
    return "\n" + columns([heads, *lines]) + "\n"


def columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def same_bytes(row: dict[str, Any]) -> bool:
    """Whether every rank sent what the formula says."""
    return row["sent_bytes"] == row["predicted_bytes"]


def failures(made: dict[str, Any]) -> list[str]:
    """What is not as the formulas say."""
    wrong = [f"error: {name} sent {row['sent_bytes']}, by formula {row['predicted_bytes']}" for name, row in named(made)
             if not same_bytes(row)]  # fmt: skip
    return wrong + [line for case in made["cases"] for line in misranked(case)]


def named(made: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    exchanges = [(f"{case['case']}, {e['exchange']}", e) for case in made["cases"] for e in case["exchanges"]]
    return exchanges + [(f"decoding, {r['codec']}", r) for r in made["decode"]]


def misranked(case: dict[str, Any]) -> list[str]:
    """Pairs whose times by formula are far apart, and were measured the other way round."""
    ordered = sorted(case["exchanges"], key=lambda e: e["predicted_ms"])
    return [
        f"error: {case['case']}: {slow['exchange']} took {slow['ms']:.1f} ms and {fast['exchange']} {fast['ms']:.1f}, "
        f"by formula {slow['predicted_ms']:.1f} and {fast['predicted_ms']:.1f}"
        for fast, slow in combinations(ordered, 2)
        if slow["predicted_ms"] > APART * fast["predicted_ms"] and slow["ms"] < fast["ms"]
    ]
