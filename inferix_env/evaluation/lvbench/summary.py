"""Results of a run, added up: by class, and in total. Knows results as plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inferix_env.evaluation.drift import MODES

# VBench's names of what five of the scorers say of a whole video.
DIMENSIONS = {
    "subject": "subject consistency",
    "background": "background consistency",
    "motion": "motion smoothness",
    "aesthetic": "aesthetic quality",
    "clarity": "imaging quality",
}


def summarise(results: Sequence[dict[str, Any]], scorers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over videos, of the total and of each class, what each is made of, and what has no result.

    Args:
        results: of each video, with its `video`, `class` and `ClipScores.to_dict()`.
        scorers: what each is, `Scorer.about`.
    """
    labels, names = sorted({result["class"] for result in results}), [about["name"] for about in scorers]
    return {
        "scorers": {about["name"]: about for about in scorers},
        "dimensions": DIMENSIONS,
        "total": means(results, names),
        "classes": {label: means([r for r in results if r["class"] == label], names) for label in labels},
        "without": without(results),
    }


def means(results: Sequence[dict[str, Any]], scorers: Sequence[str]) -> dict[str, Any]:
    """Of each scorer the mean of the whole videos' scores and of the drift by mode, each with its count."""
    out: dict[str, Any] = {"videos": len(results), "read": sum(result["reason"] is None for result in results)}
    for scorer in scorers:
        scored = [result["scores"][scorer] for result in results if scorer in result["scores"]]
        out[scorer] = {
            "score": mean([s["whole"] for s in scored]),
            **{mode: mean([s["drift"].get(mode) for s in scored]) for mode in MODES},
        }
    return out


def mean(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard error of the values that there are, and how many; None where too few are."""
    known = np.array([value for value in values if value is not None], np.float64)
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return {"mean": float(known.mean()) if len(known) else None, "error": error, "count": len(known)}


def without(results: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What has no result, and why: whole videos, and single scorers of videos that were read."""
    rows = [{"video": r["video"], "what": "video", "reason": r["reason"]} for r in results if r["reason"]]
    rows += [
        {"video": result["video"], "what": name, "reason": scored["reason"]}
        for result in results
        for name, scored in result["scores"].items()
        if scored["reason"]
    ]
    return rows


def lines_of(summary: dict[str, Any]) -> list[str]:
    """The total as lines of text: what each scorer is, its score, its drift."""
    total = summary["total"]
    lines = [f"{total['read']} of {total['videos']} videos read"]
    lines.append(f"{'':12}{'score':>12}" + "".join(f"{f'VDE {mode}':>24}" for mode in MODES))
    for name, about in summary["scorers"].items():
        cells = [total[name]["score"], *(total[name][mode] for mode in MODES)]
        shown = [f"{cell['mean']:.4f}" if cell["mean"] is not None else "-" for cell in cells]
        kind = "  (stand-in)" if about["stand_in"] else ""
        lines.append(f"{name:12}{shown[0]:>12}" + "".join(f"{cell:>24}" for cell in shown[1:]) + kind)
    return lines + [f"no {row['what']}: {row['video']}: {row['reason']}" for row in summary["without"]]
