"""Termination and reward: whether episodes end when and as often as they do in the game, and what they pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import Block, Engine
from inferix_env.evaluation import metrics
from inferix_env.evaluation.episodes import Episode, RealGame
from inferix_env.evaluation.findings import Check, Findings, Picture, Table
from inferix_env.evaluation.lives import Asked, ask_all, survive
from inferix_env.evaluation.plots import COLOURS, DREAM, REAL, Axes, Line, plot
from inferix_env.evaluation.policies import uniform

TITLE = "Termination and reward"
EDGES = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])


@dataclass(frozen=True)
class Size:
    """Attributes: episodes, as many real as dreamed; steps after which either is cut."""

    episodes: int = 100
    limit: int = 600


QUICK = Size(episodes=6, limit=120)


def collect(game: RealGame, sides: tuple[int, int], first_seed: int, size: Size) -> list[Episode]:
    """Episodes under uniform actions."""
    seeds = range(first_seed, first_seed + size.episodes)
    return list(game.play([uniform(game.spec.actions.width)], seeds, size.limit, TITLE))


def measure(engine: Engine, episodes: list[Episode], rng: np.random.Generator, size: Size) -> Findings:
    """Ask the end head at every real step; then let the same policy live in dreams that begin the same."""
    asked = ask_all(engine, episodes)
    dreams = survive(engine, episodes, uniform(engine.spec.actions.width), rng, size.limit)
    ends = end_numbers(asked)
    lives = {"real": np.array([e.steps for e in episodes]), "dream": np.array([len(d) for d in dreams])}
    survival = {name: summary(steps) for name, steps in lives.items()}
    ratio = survival["dream"]["mean"] / survival["real"]["mean"]
    pay = rewards(episodes, dreams, asked)
    checks = [
        Check("average precision of ends over the base rate", ends["lift"], low=3),
        Check("mean survival, dream over reality", ratio, low=0.75, high=1.25),
    ]
    pictures = {
        "termination": Picture(draw_ends(ends, lives), "Calibration of the end head; survival of uniform actions."),
    }
    numbers = {"ends": ends, "survival": survival, "survival_ratio": ratio, "rewards": pay}
    return Findings(
        TITLE, describe(ends, size), checks, numbers, [*end_tables(ends, survival), pay_table(pay)], pictures
    )


def describe(ends: dict, size: Size) -> str:
    return f"""*Ends*: along {size.episodes} real episodes under uniform actions the world is shown, step by step, the
real frames, actions and variables so far, and asked how likely the next real action is to end the episode:
{ends["steps"]:,} probabilities, {ends["count"]} real ends. Average precision is the area under the precision-recall
curve; a head that knows nothing has the base rate, the share of steps that end. *Survival*: as many dreams, from the
first frames of the same episodes, under uniform actions of their own, until the world draws an end or {size.limit}
steps have passed, in reality too. *Reward*: what dreams pay at steps that do and do not end them, and what the world
foretells for the steps that really were the last."""


def end_numbers(asked: Asked) -> dict:
    base = float(asked.ended.mean())
    precision = metrics.average_precision(asked.probabilities, asked.ended)
    return {
        "steps": len(asked.ended),
        "count": int(asked.ended.sum()),
        "base_rate": base,
        "average_precision": precision,
        "lift": precision / base if base else float("nan"),
        "mean_probability": float(asked.probabilities.mean()),
        "brier": float(np.square(asked.probabilities - asked.ended).mean()),
        "brier_of_base_rate": base * (1 - base),
        "calibration": metrics.reliability(asked.probabilities, asked.ended, EDGES),
    }


def summary(steps: np.ndarray) -> dict:
    return {
        "mean": float(steps.mean()),
        "error": float(steps.std(ddof=1) / np.sqrt(len(steps))),
        "median": float(np.median(steps)),
        "longest": int(steps.max()),
        "steps": steps,
    }


def rewards(episodes: Sequence[Episode], dreams: Sequence[Sequence[Block]], asked: Asked) -> dict:
    """Mean rewards of steps that do and do not end an episode, and their bias: dream less reality."""
    blocks = [block for dream in dreams for block in dream]
    going = [block.reward for block in blocks if not block.terminated]
    last = [block.reward for block in blocks if block.terminated]
    out = {
        "real_going": mean(asked.paid[~asked.ended]),
        "dream_going": mean(going),
        "dream_going_spread": float(np.std(going)) if going else float("nan"),
        "real_last": mean(asked.paid[asked.ended]),
        "foretold_last": mean(asked.foretold[asked.ended]),
        "dream_last": mean(last),
        "real_return": mean([e.rewards.sum() for e in episodes]),
        "dream_return": mean([sum(block.reward for block in dream) for dream in dreams]),
    }
    biases = {f"bias_{k}": out[f"dream_{k}"] - out[f"real_{k}"] for k in ("going", "last", "return")}
    return {**out, **biases}


def mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def end_tables(ends: dict, survival: dict) -> list[Table]:
    rows = [
        ["steps asked", ends["steps"]],
        ["real ends", ends["count"]],
        ["base rate", ends["base_rate"]],
        ["average precision", ends["average_precision"]],
        ["mean probability", ends["mean_probability"]],
        ["Brier score", ends["brier"]],
        ["Brier score of the base rate", ends["brier_of_base_rate"]],
    ]
    keys = ["mean", "error", "median", "longest"]
    lives = [[name, *(survival[kind][key] for key in keys)] for kind, name in (("real", "reality"), ("dream", "dream"))]
    return [
        Table("Ends, asked along real episodes", ["", "value"], rows),
        Table("Survival of uniform actions, steps", ["", "mean", "±", "median", "longest"], lives),
    ]


def pay_table(pay: dict) -> Table:
    rows = [
        ["a step that goes on", pay["real_going"], pay["dream_going"], pay["bias_going"]],
        ["the last step", pay["real_last"], pay["dream_last"], pay["bias_last"]],
        [
            "the last step, foretold at real ends",
            pay["real_last"],
            pay["foretold_last"],
            pay["foretold_last"] - pay["real_last"],
        ],
        ["an episode", pay["real_return"], pay["dream_return"], pay["bias_return"]],
    ]
    return Table("Mean reward", ["", "real", "predicted", "bias"], rows)


def draw_ends(ends: dict, lives: dict[str, np.ndarray]) -> np.ndarray:
    """Calibration with its counts, and both histograms of survival."""
    bins, x = ends["calibration"], "predicted probability of an end"
    predicted, observed = (np.array([row[key] for row in bins]) for key in ("predicted", "observed"))
    counts = np.array([row["count"] for row in bins])
    points = Line("bins", predicted, observed, DREAM, error=wilson(observed, counts))
    notes = [(row["predicted"], row["observed"], f"n={row['count']}") for row in bins]
    held = {row["low"]: row["count"] for row in bins}
    full = [held.get(float(low), 0) for low in EDGES[:-1]]
    calibration = Axes("Calibration", x, "share that ended", [points], diagonal=True, notes=notes)
    amount = Axes("Steps in each bin", x, "steps", [Line("", EDGES, full, COLOURS[1], "bars")], log_y=True, floor=0.5)
    steps = np.linspace(0, max(v.max() for v in lives.values()), 21)
    histograms = [
        Line(f"{name}, mean {v.mean():.0f}", steps, np.histogram(v, steps)[0], colour, style)
        for (name, v), colour, style in zip(
            (("reality", lives["real"]), ("dream", lives["dream"])), (REAL, DREAM), ("bars", "steps"), strict=True
        )
    ]
    survival = Axes("Survival of uniform actions", "steps lived", "episodes", histograms, floor=0)
    return plot([calibration, amount, survival])


def wilson(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How far the 68 % Wilson interval reaches below and above shares out of counts, [2, n]."""
    centre = (shares + 0.5 / counts) / (1 + 1 / counts)
    half = np.sqrt(shares * (1 - shares) / counts + 0.25 / counts**2) / (1 + 1 / counts)
    return np.maximum(np.stack([shares - (centre - half), centre + half - shares]), 0)
