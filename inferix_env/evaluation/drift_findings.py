"""What a long dream's scores come to: drift by scorer, curves over age, pictures of how it ages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferix_env.evaluation.drift import DriftUndefined, Mode, RunningDrift, drift
from inferix_env.evaluation.drift_config import Config
from inferix_env.evaluation.drift_state import State
from inferix_env.evaluation.findings import Clip, Findings, Picture, Table
from inferix_env.evaluation.measures import Better, Measure, finite
from inferix_env.evaluation.plots import DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.scorers import Scorer
from inferix_env.evaluation.sheets import abreast, sheet

TITLE = "Drift of a long free dream"
DRAWS = 1_000
Z = 1.96


def findings_of(state: State, config: Config, scorers: Sequence[Scorer], fps: float) -> Findings:
    """The part's findings from its scores [chunks, windows, scorers]."""
    dreamed, real = np.array(state.chunks), np.array(state.real)
    measures, rows = [], []
    for i, scorer in enumerate(scorers):
        sides = [(dreamed[..., i], "dream"), (real[..., i], "reality")]
        pair = [drifts(scores, scorer, of, config.mode) for scores, of in sides]
        measures += pair + [point for scores, of in sides for point in ages(scores, scorer, of, config)]
        values = [m.value if m.value is not None else "undefined" for m in pair]
        rows.append([scorer.name, scorer.method, *values, *(float(x.mean()) for x in dreamed[[0, -1], :, i])])
    header = ["scorer", "method (stand-in, no weights)", "VDE dream", "VDE reality", "first chunk", "last chunk"]
    pictures = {
        "drift-ages": Picture(
            draw_ages(dreamed, real, scorers, config),
            "Score of each chunk over the dream's age (bars: 95 % interval over its windows). "
            "Black: chunks of real windows, whose order says nothing.",
        ),
        "drift-running": Picture(draw_running(dreamed, real, scorers, config), "The running drift, chunk by chunk."),
        "drift-frames": Picture(show(state, config), "The frame at the end of each chunk."),
    }
    clips = {
        "drift-clip": Clip(
            beside(state),
            fps,
            f"Left: steps 1 to {config.length}. Right: the last {config.length}"
            f" of {config.chunks * (config.steps // config.chunks):,} steps.",
        )
    }
    return Findings(
        TITLE,
        describe(config),
        [],
        {"scores": {"dream": state.chunks, "real": state.real}},
        [Table("Video Drift Error", header, rows)],
        pictures,
        clips,
        measures,
    )


def describe(config: Config) -> str:
    per = config.steps // config.chunks
    return f"""One dream of {config.chunks * per:,} steps from one real frame under `{config.policy}`, ends passed over
and the named variables held. It is cut into {config.chunks} chunks of {per:,} steps; a chunk's score m_i is the mean
over its {config.windows} windows of {config.length} frames, scored as they come. *Video Drift Error* (LV-Bench), mode
`{config.mode}`: the sum over later chunks of w_i |m_i - m_1| / m_1. The scorers are stand-ins that need no weights;
their numbers compare with their own only, not with published ones. Intervals are 1.96 standard errors, by drawing each
chunk's windows again. *Reality* is {config.real} windows a chunk of real episodes under the same player, in as many
chunks: it does not age, so its drift is what noise and the luck of the scenes alone come to."""


def vde(scores: np.ndarray, mode: Mode) -> float:
    """Drift of chunk scores [chunks]; NaN where it is undefined."""
    try:
        return drift(scores, mode)
    except DriftUndefined:
        return float("nan")


def drifts(windows: np.ndarray, scorer: Scorer, of: str, mode: Mode) -> Measure:
    """The drift of scores [chunks, windows], with an interval over the windows."""
    value = vde(windows.mean(1), mode)
    rng = np.random.default_rng(windows.shape)
    picks = rng.integers(windows.shape[1], size=(DRAWS, *windows.shape))
    drawn = np.take_along_axis(windows[None], picks, axis=2).mean(2)
    better: Better = "lower" if of == "dream" else ""
    if windows.shape[1] < 2 or not np.isfinite(value):
        return Measure(f"drift: {scorer.name}", of, finite(value), better=better)
    error = float(np.nanstd([vde(row, mode) for row in drawn]))
    return Measure(f"drift: {scorer.name}", of, value, max(0.0, value - Z * error), value + Z * error, better=better)


def ages(windows: np.ndarray, scorer: Scorer, of: str, config: Config) -> list[Measure]:
    """The score of each chunk [chunks, windows], at the age of its end."""
    error = errors(windows)
    step = config.steps // config.chunks
    return [
        Measure(f"score: {scorer.name}", of, float(m), finite(m - e), finite(m + e), at=(i + 1) * step)
        for i, (m, e) in enumerate(zip(windows.mean(1), error, strict=True))
    ]


def errors(windows: np.ndarray) -> np.ndarray:
    """Half the interval of each chunk's mean, [chunks]."""
    count = windows.shape[1]
    return Z * windows.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(len(windows))


def draw_ages(dreamed: np.ndarray, real: np.ndarray, scorers: Sequence[Scorer], config: Config) -> np.ndarray:
    x = (np.arange(config.chunks) + 1) * (config.steps // config.chunks)
    panels = []
    for i, scorer in enumerate(scorers):
        lines = [
            Line(name, x, scores[..., i].mean(1), colour, error=errors(scores[..., i]))
            for name, scores, colour in (("reality", real, REAL), ("dream", dreamed, DREAM))
        ]
        panels.append(Axes(scorer.name, "age, steps", "score (stand-in)", lines))
    return plot(panels)


def draw_running(dreamed: np.ndarray, real: np.ndarray, scorers: Sequence[Scorer], config: Config) -> np.ndarray:
    """Drift so far after each chunk; where the mode has no running form, that of the normalised one."""
    x = (np.arange(config.chunks) + 1) * (config.steps // config.chunks)
    mode: Mode = "normalised" if config.mode == "published-log" else config.mode
    panels = []
    for i, scorer in enumerate(scorers):
        lines = [
            Line(name, x, running(scores[..., i].mean(1), mode), colour)
            for name, scores, colour in (("reality", real, REAL), ("dream", dreamed, DREAM))
        ]
        panels.append(Axes(scorer.name, "age, steps", f"drift so far ({mode})", lines, floor=0))
    return plot(panels)


def running(scores: np.ndarray, mode: Mode) -> np.ndarray:
    """The running drift after each chunk; NaN from where it is undefined."""
    meter, values = RunningDrift(mode), []
    for score in scores:
        try:
            values.append(meter.add(float(score)))
        except DriftUndefined:
            values.append(float("nan"))
    return np.array(values)


def show(state: State, config: Config) -> np.ndarray:
    assert state.first is not None
    step = config.steps // config.chunks
    frames = np.stack([state.first[0], *state.shown])
    names = ["step 1", *(f"{(i + 1) * step:,}" for i in range(config.chunks))]
    half = -(-len(frames) // 2)
    blank = np.full_like(frames[:1], 255)
    below = np.concatenate([frames[half:], *[blank] * (2 * half - len(frames))])
    return np.concatenate(
        [
            sheet([("dream", part)], labels, width=192)
            for part, labels in ((frames[:half], names[:half]), (below, [*names[half:], ""][:half]))
        ]
    )


def beside(state: State) -> np.ndarray:
    """The first window and the last one side by side, uint8 [T, h, w, 3]."""
    assert state.first is not None
    assert state.last is not None
    return abreast([("the first window", state.first), ("the last window", state.last)])
