"""What the damage study found, as a section of a report: checks, tables, pictures. Knows the study; plays nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferix_env.evaluation.damage_study import (
    CUT,
    EARLY,
    EXPECTED,
    LATE,
    Results,
    clean_drifts,
    moved,
    over_strengths,
    rows_of,
)
from inferix_env.evaluation.damages import DAMAGES, Scene, fitted
from inferix_env.evaluation.drift import MODES
from inferix_env.evaluation.findings import Check, Findings, Picture, Table
from inferix_env.evaluation.heat import Heat, draw_heats
from inferix_env.evaluation.scorers import Scorer
from inferix_env.evaluation.sheets import sheet

LEAST = 1e-3  # what counts as a step


@dataclass(frozen=True)
class Shown:
    """A clip to show, another that is swapped in, and what was done to all clips."""

    clip: np.ndarray
    other: np.ndarray
    chunks: int
    strengths: Sequence[float]


def findings_of(results: Results, scorers: Sequence[Scorer], shown: Shown) -> Findings:
    """The study as a section of a report."""
    rows = rows_of(results)
    pictures = {
        "damage": Picture(draw_study(rows, scorers), caption_of(len(results), shown)),
        "damage-frames": Picture(show(shown), "A frame near the end of a clip under each damage at each strength."),
    }
    numbers = {
        "scorers": [scorer.about for scorer in scorers],
        "rows": rows,
        "clean": clean_drifts(results),
        "clips": list(results),
    }
    method = METHOD.format(frames=len(shown.clip), chunks=shown.chunks)
    return Findings("Damage", method, checks_of(rows, scorers), numbers, tables_of(rows, results), pictures)


def checks_of(rows: Sequence[dict], scorers: Sequence[Scorer]) -> list[Check]:
    """What had to move, and how far it did. Nothing is expected of published models: what they see is theirs to say."""
    stand_in = {scorer.name for scorer in scorers if scorer.stand_in}
    checks = []
    for e in (e for e in EXPECTED if e.scorer in stand_in):
        way, how = "rises" if e.sign > 0 else "falls", "smallest step" if e.steady else "in all"
        change = moved(rows, e, "change", e.sign)
        checks.append(Check(f"{e.scorer} {way} with {e.damage}, {how}", change, low=LEAST, unit="%"))
        for mode in MODES if e.drifts else ():
            name = f"{mode} drift of {e.scorer} rises with {e.damage}, {how}"
            checks.append(Check(name, moved(rows, e, mode, 1), low=LEAST))
    return checks


METHOD = """Real clips of {frames} frames, in {chunks} chunks, are damaged. The damage sets in after the first chunk and
grows, frame by frame, to its strength at the end. *Change* is how far the score of the whole clip moves, in per cent;
*rise* is the drift (VDE) of the damaged clip less that of the same clip undamaged, which is not 0, as games move. Blur
of two chunks, early or late, says what each form of drift weighs; a sudden swap, from the middle of a chunk on, says
what the consistency of chunks sees that a slow one hides from them: as published, it compares the frames of one chunk
with each other, never with those of another. Relative to the first chunk a score can fall by 1 at most and rise without
bound, so that a clip that freezes may drift less than one that moves."""


def caption_of(count: int, shown: Shown) -> str:
    return (
        f"Damage growing to strength {max(shown.strengths):g}, mean over {count} real clips. Framed: what must move, "
        "and that it moves the right way is checked: the clip's score, and the drift in each mode."
    )


def tables_of(rows: Sequence[dict], results: Results) -> list[Table]:
    header = ["damage", "strength", "scorer", "change, %", "±", *(x for mode in MODES for x in (mode, "±"))]
    keys = ["damage", "strength", "scorer", "change", "change_error", *(x for m in MODES for x in (m, f"{m}_error"))]
    clean = clean_drifts(results)
    return [
        Table("Change of the score and rise of the drift", header, [[row[key] for key in keys] for row in rows]),
        Table(
            "Drift of the clips undamaged",
            ["scorer", *(x for mode in MODES for x in (mode, "±"))],
            [[row["scorer"], *(row[x] for m in MODES for x in (m, f"{m}_error"))] for row in clean],
        ),
    ]


def draw_study(rows: Sequence[dict], scorers: Sequence[Scorer]) -> np.ndarray:
    """All damages by all scorers at the greatest strength: change of the score, rise of the drift in each mode."""
    damages = [*DAMAGES, CUT.damage, EARLY.damage, LATE.damage]
    columns = [scorer.name for scorer in scorers]
    stand_ins = {scorer.name for scorer in scorers if scorer.stand_in}

    def cells(key: str) -> np.ndarray:
        return np.array([[over_strengths(rows, damage, name, key)[-1] for name in columns] for damage in damages])

    def places(drifts: bool) -> list[tuple[int, int]]:
        checked = [e for e in EXPECTED if e.scorer in stand_ins and (e.drifts or not drifts)]
        return [(damages.index(e.damage), columns.index(e.scorer)) for e in checked]

    heats = [Heat("change of the clip's score, %", damages, columns, cells("change"), 60, "{:+.1f}", places(False))]
    for mode, full, form in (
        ("normalised", 1, "{:+.3f}"),
        ("published-linear", 25, "{:+.2f}"),
        ("published-log", 7, "{:+.2f}"),
    ):
        heats.append(Heat(f"rise of the drift, {mode}", damages, columns, cells(mode), full, form, places(True)))
    return draw_heats(heats)


def show(shown: Shown) -> np.ndarray:
    """One frame under each damage, a row for each strength."""
    scene = Scene(np.random.default_rng(0), fitted(shown.other, *shown.clip.shape[:3]))
    odd = (len(shown.clip) - 1) // 2 * 2 - 1  # flicker shows in odd frames
    rows = []
    for strength in (0.0, *shown.strengths):
        amounts = np.full(len(shown.clip), strength)
        last = [damage(shown.clip, amounts, scene)[odd] for damage in DAMAGES.values()]
        rows.append((f"{strength:g}", np.stack(last)))
    return sheet(rows, list(DAMAGES), width=128)
