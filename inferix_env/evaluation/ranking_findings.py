"""What returns in the dream and in reality come to: rank correlations with intervals, a table, a scatter plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from inferix_env.evaluation.findings import Findings, Picture, Table
from inferix_env.evaluation.measures import Measure, ends_of, finite, measure
from inferix_env.evaluation.plots import COLOURS, REAL, TARGET, Axes, Line, plot
from inferix_env.evaluation.rank_correlation import kendall, spearman
from inferix_env.evaluation.ranking_config import Config

TITLE = "Ranking policies"
DRAWS = 1_000
POINTS = (*COLOURS, TARGET, REAL)


@dataclass(frozen=True)
class Returns:
    """What a policy earned in each real episode, and in the dream that began as it did."""

    real: list[float]
    dream: list[float]


Draw = tuple[np.ndarray, np.ndarray]
"""Mean returns of all policies in reality and in the dream, [P] each."""


def findings_of(returns: Mapping[str, Returns], config: Config) -> Findings:
    means = of_means(returns)
    draws = [resampled(returns, np.random.default_rng(i)) for i in range(DRAWS)]
    told = told_apart(returns)
    measures = [
        correlation("Spearman's rank correlation", spearman, means, draws),
        correlation("Kendall's rank correlation (tau-b)", kendall, means, draws),
        correlation("pairs in the right order", lambda a, b: right_order(a, b, told), means, draws),
        *(point for name, r in returns.items() for point in of_policy(name, r)),
    ]
    picture = Picture(draw_scatter(returns), "Mean returns of each policy; bars are 95 % intervals over episodes.")
    numbers = {name: {"real": r.real, "dream": r.dream} for name, r in returns.items()}
    return Findings(
        TITLE, describe(config, told), [], numbers, [table(returns, means)], {"ranking": picture}, {}, measures
    )


def describe(config: Config, told: list[tuple[int, int]]) -> str:
    return f"""Each policy plays {config.episodes} real episodes of at most {config.limit} steps from seeds
{config.seed:,} on, and as many dreams that begin with their first frames, until the world draws an end or as many steps
have passed. Policies are ranked by their mean returns in both. Intervals draw each policy's episodes again, 1,000
times; where policies are nearly as good as one another no ranking can be sure of them, in reality neither. *Pairs in
the right order* are asked only of the {len(told)} pairs whose real means are further apart than 1.96 standard errors of
their difference."""


def of_means(returns: Mapping[str, Returns]) -> Draw:
    return np.array([np.mean(r.real) for r in returns.values()]), np.array([np.mean(r.dream) for r in returns.values()])


def resampled(returns: Mapping[str, Returns], rng: np.random.Generator) -> Draw:
    """Means where each policy's episodes are drawn again; an episode and its dream go together."""
    picks = [rng.integers(len(r.real), size=len(r.real)) for r in returns.values()]
    sides = (
        [np.array(getattr(r, side))[p].mean() for r, p in zip(returns.values(), picks, strict=True)]
        for side in ("real", "dream")
    )
    real, dream = (np.array(side) for side in sides)
    return real, dream


def correlation(
    name: str, statistic: Callable[[np.ndarray, np.ndarray], float], means: Draw, draws: list[Draw]
) -> Measure:
    value = finite(statistic(*means))
    low, high = ends_of(np.array([statistic(*draw) for draw in draws]))
    return Measure(name, "dream", value, low, high, better="higher")


def told_apart(returns: Mapping[str, Returns]) -> list[tuple[int, int]]:
    """Pairs of policies that reality tells apart."""
    rows = [np.array(r.real) for r in returns.values()]
    errors = [row.var(ddof=1) / len(row) for row in rows]
    return [
        (i, j)
        for i, j in combinations(range(len(rows)), 2)
        if abs(rows[i].mean() - rows[j].mean()) > 1.96 * np.sqrt(errors[i] + errors[j])
    ]


def right_order(real: np.ndarray, dream: np.ndarray, told: list[tuple[int, int]]) -> float:
    """The share of those pairs that the dream has in reality's order; NaN where there are none."""
    right = [np.sign(real[i] - real[j]) == np.sign(dream[i] - dream[j]) for i, j in told]
    return float(np.mean(right)) if right else float("nan")


def of_policy(name: str, returns: Returns) -> list[Measure]:
    """A policy's mean return on both sides, and how far the dream is off."""
    sides = {"reality": returns.real, "dream": returns.dream}
    made = [measure(f"return: {name}", of, named(values)) for of, values in sides.items()]
    off = [d - r for d, r in zip(returns.dream, returns.real, strict=True)]
    return [*made, measure(f"return: {name}", "dream less reality", named(off))]


def named(values: list[float]) -> dict[str, float]:
    return {str(i): x for i, x in enumerate(values)}


def table(returns: Mapping[str, Returns], means: Draw) -> Table:
    """Policies from the best in reality to the worst."""
    places = [np.argsort(np.argsort(-side, kind="stable"), kind="stable") + 1 for side in means]
    rows = []
    for i in np.argsort(places[0]):
        name, r = list(returns.items())[i]
        rows.append([name, *(cell(x) for x in (r.real, r.dream)), int(places[0][i]), int(places[1][i])])
    header = [
        "policy",
        "return, reality (± standard error)",
        "return, dream (± standard error)",
        "rank, reality",
        "rank, dream",
    ]
    return Table("Policies", header, rows)


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1f}"


def draw_scatter(returns: Mapping[str, Returns]) -> np.ndarray:
    """Mean return in the dream over that in reality, a point a policy, each with both its intervals."""
    lines = []
    for i, (name, r) in enumerate(returns.items()):
        real, dream = (measure("", "", named(side)) for side in (r.real, r.dream))
        x, y, colour = real.value or 0.0, dream.value or 0.0, POINTS[i % len(POINTS)]
        up = None if dream.low is None else np.array([[y - dream.low], [(y if dream.high is None else dream.high) - y]])
        lines.append(Line(short_name(name), [x], [y], colour, "points", up))
        if real.low is not None and real.high is not None:
            lines.append(Line("", [real.low, real.high], [y, y], colour, "curve"))
    ends = [min(x for line in lines for x in line.x), max(x for line in lines for x in line.x)]
    lines.append(Line("as in reality", ends, ends, "#999999", "curve"))
    return plot([Axes("Returns", "mean return, reality", "mean return, dream", lines)], width=6.4, height=4.8)


def short_name(text: str) -> str:
    """A policy without the module that it comes from, for a legend."""
    module, _, rest = text.partition(":")
    return rest.removeprefix("make_policy:") if "." in module and rest else text
