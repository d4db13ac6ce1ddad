"""What fidelity's measures come to: plots, tables, contact sheets, and clips of reality beside the dream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import WorldSpec
from inferix_env.evaluation.closeness import Frames, curve
from inferix_env.evaluation.fidelity_config import Config
from inferix_env.evaluation.findings import Clip, Findings, Picture, Table
from inferix_env.evaluation.lives import Asked
from inferix_env.evaluation.measures import Measure
from inferix_env.evaluation.outcomes import REWARD, calibration
from inferix_env.evaluation.plots import COLOURS, Axes, Line, plot
from inferix_env.evaluation.sheets import abreast, sheet
from inferix_env.evaluation.steering import name_of
from inferix_env.evaluation.stretches import Stretch

TITLE = "Fidelity: the dream against reality"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was dreamed and measured: frames of each kind for each stretch, measures, and what the end head said."""

    stretches: list[Stretch]
    frames: Frames
    measures: list[Measure]
    asked: list[Asked]


def findings_of(measured: Measured, config: Config, spec: WorldSpec, context: int) -> Findings:
    names = list(dict.fromkeys(m.name for m in measured.measures if m.at is not None and m.name != REWARD))
    pictures = {
        "fidelity-horizons": Picture(
            plot([curve(measured.measures, name) for name in names]),
            "Closeness to reality over the horizon; bars are 95 % intervals over episodes. The codec is what no dream "
            "can pass; wrong actions are another episode's.",
        ),
        "fidelity-outcomes": Picture(draw_outcomes(measured, spec), outcomes_caption(measured)),
        "fidelity-sheet": Picture(
            show(measured, config),
            "Reality, the dream from the same history under the same actions, and under another episode's.",
        ),
    }
    clips = {
        f"fidelity-clip-{i + 1}": side_by_side(measured, at, spec.fps)
        for i, at in enumerate(picked(measured, config.shown))
    }
    tables = [by_horizon(measured.measures, name, config.horizons) for name in (*names, REWARD)]
    tables += [singles(measured.measures)]
    numbers = {"stretches": {s.name: len(s) for s in measured.stretches}}
    method = describe(measured, config, context)
    return Findings(TITLE, method, [], numbers, tables, pictures, clips, measured.measures)


def describe(measured: Measured, config: Config, context: int) -> str:
    ends, reach = sum(a.ended.sum() for a in measured.asked), [len(s) for s in measured.stretches]
    players = ", ".join(f"`{p}`" for p in config.policies)
    source = (
        f"{config.episodes} recorded episodes"
        if config.recorded
        else f"{config.episodes} real episodes of at most {config.limit} steps under {players} in turn, seeds from "
        f"{config.seed:,}"
    )
    return f"""{source}. From a drawn place in each, with the {context} real frames up to it as context, the world
dreams on under the actions that were really taken, past any end it draws, as far as reality goes and for at most
{max(config.horizons)} steps: {len(reach)} dreams, of {np.median(reach):.0f} steps in the median. An interval is the
middle 95 % of 2,000 draws of as many episodes. Every horizon compares the dreams that reach it.

*PSNR* is of the squared error pooled over dreams. *SSIM* after Wang et al. (2004), on luma. *Sharpness* is the mean
absolute Laplacian over the real frame's: 1 is as sharp as reality. *Reward error* is |dreamed - real| of the mean
reward of the first h steps. *Ends*: along the real episodes the world is shown what really happened, step by step, and
asked how likely the next real action is to end the episode ({int(ends)} real ends). {control(config)}"""


def control(config: Config) -> str:
    if not config.learn:
        return ""
    return f"""*Control*: a probe learns on {config.learn} other real episodes to read the action off two frames; it is
asked of dreamed frames which of the real actions they show."""


def draw_outcomes(measured: Measured, spec: WorldSpec) -> np.ndarray:
    panels = [curve(measured.measures, REWARD, y="mean absolute error")]
    steer = [m for m in measured.measures if m.name == name_of(spec)]
    if steer:
        panels.append(bars(steer, name_of(spec)))
    if any(a.ended.any() for a in measured.asked):
        panels.append(calibration(measured.asked))
    return plot(panels)


def bars(measures: Sequence[Measure], title: str) -> Axes:
    """One point a kind, with its interval."""
    y = np.array([np.nan if m.value is None else m.value for m in measures])
    low, high = (
        np.array([v if e is None else e for v, e in zip(y, ends, strict=True)], np.float64)
        for ends in ([m.low for m in measures], [m.high for m in measures])
    )
    line = Line("", np.arange(len(y)), y, COLOURS[0], "points", np.maximum(np.stack([y - low, high - y]), 0))
    names = [m.of.replace(" ", "\n") for m in measures]
    return Axes(title, "frames", "", [line], names=names, floor=None)


def outcomes_caption(measured: Measured) -> str:
    ended = any(a.ended.any() for a in measured.asked)
    return (
        "Reward error over the horizon, control by the probe, and calibration of ends."
        if ended
        else (
            "Reward error over the horizon, and control by the probe. No real episode ended within its limit, so ends "
            "are not measured."
        )
    )


def picked(measured: Measured, count: int) -> list[int]:
    """Stretches to show: among the longest half, evenly."""
    order = np.argsort([-len(s) for s in measured.stretches], kind="stable")
    half = order[: max(count, len(order) // 2)]
    return [int(i) for i in half[np.linspace(0, len(half) - 1, min(count, len(half))).astype(int)]] if count else []


def show(measured: Measured, config: Config) -> np.ndarray:
    """Reality, dream and dream under wrong actions at each horizon, of a few stretches; white where reality is over."""
    rows = []
    for i in picked(measured, max(1, config.shown)):
        stretch = measured.stretches[i]
        for label, frames in (
            ("real", stretch.frames),
            ("dream", measured.frames["dream"][i]),
            ("wrong\nactions", measured.frames["wrong actions"][i]),
        ):
            rows.append((label, at(stretch.start.frames[-1], frames, config.horizons)))
    return sheet(rows, ["last real", *(f"{h}" for h in config.horizons)], width=128, together=3)


def at(first: np.ndarray, frames: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    blank = np.full_like(first, 255)
    return np.stack([first, *(frames[h - 1] if h <= len(frames) else blank for h in horizons)])


def side_by_side(measured: Measured, i: int, fps: float) -> Clip:
    """Reality on the left, the dream on the right."""
    stretch, ours = measured.stretches[i], measured.frames["dream"][i]
    frames = abreast([("real", stretch.frames), ("dream", ours)])
    return Clip(
        frames, fps, f"Episode {stretch.name}, {len(stretch)} steps: reality | dream, same start, same actions."
    )


def by_horizon(measures: Sequence[Measure], name: str, horizons: Sequence[int]) -> Table:
    """A measure's kinds over the horizon, each with its interval."""
    chosen = {(m.of, m.at): m for m in measures if m.name == name}
    kinds = list(dict.fromkeys(of for of, _ in chosen))
    rows = [[kind, *(cell(chosen.get((kind, h))) for h in horizons)] for kind in kinds]
    reach = [len(m.samples) if (m := chosen.get(("dream", h))) else 0 for h in horizons]
    header = ["", *(f"{h} step{'s' * (h > 1)}" for h in horizons)]
    return Table(name, header, [*rows, ["dreams compared", *map(str, reach)]])


def singles(measures: Sequence[Measure]) -> Table:
    """Measures that have no horizon."""
    return Table(
        "Ends and control",
        ["measure", "of", "value [95 % interval]"],
        [[m.name, m.of, cell(m)] for m in measures if m.at is None],
    )


def cell(measure: Measure | None) -> str:
    """A value and its interval."""
    if measure is None or measure.value is None:
        return "–"
    ends = "" if measure.low is None or measure.high is None else f" [{short(measure.low)}, {short(measure.high)}]"
    return f"{short(measure.value)}{ends}"


def short(x: float) -> str:
    return f"{x:.1f}" if abs(x) >= 10 else f"{x:.3f}"
