"""python -m benchmarks.guards: which signal of a guard predicts how far a dream is from reality.

Real episodes that nothing was trained on; from drawn rows of them a world dreams on under the actions that were
really taken, and every signal is read at every step. The error of a step is the mean squared error of its frame
against the real one. Asked of each signal: Spearman's rank correlation with that error, and the area under the ROC
curve for the worst tenth of the steps, by horizon and over all; 95 % intervals by drawing episodes again. Beside them
what costs nothing: the step's age and how much the frame changed. Then what signals say of real frames themselves,
which is what a bound has to let pass, and what a signal costs. One JSON row a signal with --out, a plot with --plot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.many_worlds import interleaved, write_rows
from engine import Condition, Engine, Start, World, WorldModel, held, read_card
from inferix_env import worlds
from inferix_env.evaluation import metrics
from inferix_env.evaluation.dreaming import GROUP, context, context_length, opened
from inferix_env.evaluation.episodes import Episode, RealGame, pick_rows
from inferix_env.evaluation.plots import COLOURS, Axes, Line, plot
from inferix_env.evaluation.policies import find_sides, sticky, strafe, uniform
from inferix_env.guard import Guard, Moment, Signal, Unguarded, latents_of, renoise, unread, unusual
from inferix_env.record import write_sheet
from inferix_env.reference import reference_of

# Columns that cost nothing, for a signal to be better than.
FREE = ("age", "change")
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class GuardsConfig:
    """What to measure.

    Attributes:
        world: a shipped world's name, or a folder; with guard.safetensors.
        episodes: real ones, a third each under uniform, sticky and strafing actions.
        limit: the longest, in steps.
        sequences: rows of them that are dreamed on from.
        horizons: steps at which signals are asked; the last is how far a dream goes.
        levels: noise levels of the second opinion.
        smooth: also the mean of each signal over so many steps.
        real_steps: real frames after each row that signals are read of.
        seed: of the first real episode, and of everything that is drawn.
        draws: of episodes, for the intervals.
        timed: steps timed for each signal.
        out: where to write the rows as JSON.
        plot: where to draw them, as a PNG.
    """

    world: str = "doom-take-cover"
    episodes: int = 45
    limit: int = 160
    sequences: int = 96
    horizons: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    levels: tuple[float, ...] = (0.4, 0.67, 0.89)
    smooth: int = 8
    real_steps: int = 4
    seed: int = 31_000
    draws: int = 500
    timed: int = 30
    out: Path | None = None
    plot: Path | None = None

    def check(self) -> None:
        """Raise ValueError for a setting that is wrong."""
        counts = (self.episodes, self.limit, self.sequences, *self.horizons, self.smooth, self.real_steps, self.timed)
        if min(counts) < 1 or self.draws < 2 or not self.horizons or not self.levels:
            raise ValueError(f"{self}: expected every count from 1, at least one horizon and level, and two draws")
        if list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"--horizons {self.horizons}: expected ascending steps, each once")


def collect(config: GuardsConfig, folder: Path, model: WorldModel) -> list[Episode]:
    """Real episodes from seeds that the world was not trained on."""
    card = read_card(folder)
    data, n = card["data"], model.spec.actions.width
    game = RealGame(data["env"], model.spec, int(data.get("frame_skip", 1)))
    try:
        seeds = range(config.seed, config.seed + config.episodes)
        policies = [uniform(n), sticky(n), strafe(n, find_sides(model.spec, card))]
        return list(game.play(policies, seeds, config.limit, "guards"))
    finally:
        game.close()


def signals_of(config: GuardsConfig, folder: Path) -> dict[str, Signal]:
    """All signals that are compared, by name."""
    reference = reference_of(folder)
    made = {f"renoise {level:g}": renoise(level) for level in config.levels}
    return {**made, "latent": unusual(reference), "action": unread(reference)}


def dream(
    guard: Guard, episodes: Sequence[Episode], rows: Sequence[tuple[int, int]], steps: int, rng: np.random.Generator
) -> tuple[Columns, np.ndarray]:
    """Dream on from (episode, row)s under the real actions: columns of signals and the errors, each [N, steps]."""
    length = context_length(guard.sim.spec)
    starts = [context(episodes[i], t, length) for i, t in rows]
    seeds = rng.integers(2**62, size=len(rows))
    columns = {name: np.zeros((len(rows), steps)) for name in (*guard.signals, "change")}
    errors = np.zeros((len(rows), steps))
    with tqdm(total=len(rows) * steps, desc="dream", unit="step", leave=False, disable=None) as bar:
        for first in range(0, len(rows), GROUP):
            group = range(first, min(first + GROUP, len(rows)))
            before = np.stack([starts[i].frames[-1] for i in group])
            with opened(guard.sim, [starts[i] for i in group], seeds[first : first + GROUP]) as crew:
                for step in range(steps):
                    at = [(episodes[rows[i][0]], rows[i][1] + 1 + step) for i in group]
                    blocks, read = guard.step(crew, [Condition.of(e.actions[t : t + 1]) for e, t in at])
                    frames = np.stack([block.frames[-1] for block in blocks])
                    for name in guard.signals:
                        columns[name][group, step] = [one[name] for one in read]
                    columns["change"][group, step] = metrics.temporal_change(before, frames)
                    errors[group, step] = metrics.squared_error(np.stack([e.frames[t] for e, t in at]), frames)
                    before = frames
                    bar.update(len(group))
    return {**columns, "age": np.tile(np.arange(1.0, steps + 1), (len(rows), 1))}, errors


def read_reality(guard: Guard, episodes: Sequence[Episode], rows: Sequence[tuple[int, int]], steps: int) -> Columns:
    """What signals say of the real frames after each row, which the world is shown one by one, each [N, steps]."""
    columns = {name: np.zeros((len(rows), steps)) for name in guard.signals}
    length = context_length(guard.sim.spec)
    for n, (i, t) in enumerate(tqdm(rows, desc="reality", unit="row", leave=False, disable=None)):
        with opened(guard.sim, [context(episodes[i], t, length)], [n]) as crew:
            for step in range(steps):
                seen = episodes[i].rows(t + 1 + step, t + 2 + step)
                for name, value in observe(guard, crew, seen).items():
                    columns[name][n, step] = value
    return columns


def observe(guard: Guard, crew: list[World], seen: Start) -> dict[str, float]:
    """Show a world one real frame; what the signals say of it, as if it had been dreamed."""
    past = [latents_of(world) for world in crew]
    with held(guard.sim, crew) as forks:
        guard.sim.observe(crew[0], seen)
        moment = Moment(forks, past, [latents_of(crew[0])], [Condition.of(seen.actions)])
        return {name: signal(guard.sim, moment)[0] for name, signal in guard.signals.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean, float64 of the same shape [n]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two [n]; NaN where one is constant."""
    x, y = ranks(a) - (len(a) - 1) / 2, ranks(b) - (len(b) - 1) / 2
    scale = np.sqrt(np.square(x).sum() * np.square(y).sum())
    return float((x * y).sum() / scale) if scale else float("nan")


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a True's score lies above a False's (Mann and Whitney); NaN for one class."""
    high = int(labels.sum())
    low = labels.size - high
    if not high or not low:
        return float("nan")
    return float((ranks(scores)[labels].sum() - high * (high - 1) / 2) / (high * low))


def worst(errors: np.ndarray) -> np.ndarray:
    """Which are among the largest tenth, bool."""
    return errors >= np.quantile(errors, 0.9)


def at_horizon(column: np.ndarray, errors: np.ndarray, h: int) -> tuple[float, float]:
    """Rank correlation and area under the curve among steps of one age."""
    return spearman(column[:, h - 1], errors[:, h - 1]), auc(column[:, h - 1], worst(errors[:, h - 1]))


def over_all(column: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """The same over steps of all ages together, and their means over ages, in which age itself says nothing."""
    ages = [at_horizon(column, errors, h) for h in range(1, errors.shape[1] + 1)]
    flat, label = column.ravel(), worst(errors).ravel()
    return {
        "spearman": spearman(flat, errors.ravel()),
        "auc": auc(flat, label),
        "spearman_same_age": float(np.mean([s for s, _ in ages])),
        "auc_same_age": float(np.mean([a for _, a in ages])),
    }


def interval(
    measure: Callable[[np.ndarray], Mapping[str, float]], owners: np.ndarray, draws: int, seed: int
) -> dict[str, float]:
    """Low and high ends of 95 % intervals of `measure(rows)`, drawing episodes (`owners` of the rows) again."""
    rng, names = np.random.default_rng(seed), np.unique(owners)
    rows = {name: np.flatnonzero(owners == name) for name in names}
    found = [measure(np.concatenate([rows[n] for n in rng.choice(names, len(names))])) for _ in range(draws)]
    ends = {}
    for key in found[0]:
        values = [f[key] for f in found if not np.isnan(f[key])] or [float("nan")]
        low, high = np.quantile(values, (0.025, 0.975))
        ends |= {f"{key}_low": float(low), f"{key}_high": float(high)}
    return ends


def smoothed(column: np.ndarray, count: int) -> np.ndarray:
    """Mean of the last `count` steps, of as many as there are at first, [N, S]."""
    sums = np.pad(column.cumsum(1), ((0, 0), (1, 0)))
    stop = np.arange(1, column.shape[1] + 1)
    start = np.maximum(0, stop - count)
    return (sums[:, stop] - sums[:, start]) / (stop - start)


def row_of(config: GuardsConfig, name: str, column: np.ndarray, errors: np.ndarray, owners: np.ndarray) -> dict:
    """A signal's numbers, with their intervals."""
    row: dict[str, Any] = {"signal": name, **over_all(column, errors)}
    row |= interval(lambda rows: over_all(column[rows], errors[rows]), owners, max(2, config.draws // 5), config.seed)
    for h in config.horizons:
        both = dict(zip(("spearman", "auc"), at_horizon(column, errors, h), strict=True))

        def ask(rows: np.ndarray, h: int = h) -> dict[str, float]:
            return dict(zip(("spearman", "auc"), at_horizon(column[rows], errors[rows], h), strict=True))

        ends = interval(ask, owners, config.draws, config.seed)
        row[f"at_{h}"] = {key: float(value) for key, value in {**both, **ends}.items()}
    return row


def bounds(column: np.ndarray, real: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    """Bounds that 1 in 100 and 1 in 1,000 frames exceed, real ones and dreamed, and what they cut of the dreams."""
    made: dict[str, float] = {"dream_p50": float(np.median(column)), "real_p50": float(np.median(real))}
    frames, shares = {"": real, "dream_": column}, {"1_in_100": 0.99, "1_in_1000": 0.999}
    for name, bound in {
        f"{lead}{name}": float(np.quantile(x, share)) for lead, x in frames.items() for name, share in shares.items()
    }.items():
        cut = column > bound
        made |= {f"bound_{name}": bound, f"cut_{name}": float(cut.mean())}
        if cut.any() and not cut.all():
            made[f"error_cut_over_kept_{name}"] = float(errors[cut].mean() / errors[~cut].mean())
    return made


def costs(config: GuardsConfig, model: WorldModel, starts: Sequence[Start], signals: Mapping[str, Signal]) -> dict:
    """Milliseconds of CPU that a step of one world takes more with each signal: medians of steps that take turns.

    Of the process, all threads together: what runs beside it does not count.
    """
    sim = Engine(model, max_worlds=2 * (len(signals) + 1), deterministic=False)
    ways: dict[str, Guard | Unguarded] = {"": Unguarded(sim)}
    ways |= {name: Guard(sim, {name: x}, {}, forks=name.startswith("renoise")) for name, x in signals.items()}
    condition = Condition.of(np.eye(model.spec.actions.width, dtype=np.float32)[:1])
    with opened(sim, [starts[0]] * len(ways), range(len(ways))) as crew:

        def timer(way: Guard | Unguarded, world: World) -> Callable[[], float]:
            def step() -> float:
                began = process_time()
                way.step([world], [condition])
                return process_time() - began

            return step

        steps = {name: timer(way, world) for (name, way), world in zip(ways.items(), crew, strict=True)}
        times = interleaved(steps, config.timed, config.timed)
    plain = float(np.median(times[""])) * 1e3
    return {name: {"step_cpu_ms": plain, "cpu_ms": float(np.median(times[name])) * 1e3 - plain} for name in signals}


def run(config: GuardsConfig) -> list[dict[str, Any]]:
    """Measure; a row a signal.

    Raises:
        ValueError: the world has no reference, or its real env is not there.
    """
    config.check()
    folder = worlds.find(config.world)
    signals = signals_of(config, folder)
    model = worlds.model(folder, "cpu", None)
    episodes, rng = collect(config, folder, model), np.random.default_rng(config.seed)
    steps, length = max(config.horizons), context_length(model.spec)
    rows = pick_rows(episodes, length, max(steps, config.real_steps), config.sequences, rng)
    guard = Guard(Engine(model, max_worlds=2 * GROUP, deterministic=False), signals, {}, forks=True)
    columns, errors = dream(guard, episodes, rows, steps, rng)
    real = read_reality(guard, episodes, rows, config.real_steps)
    spent = costs(config, model, [context(episodes[i], t, length) for i, t in rows[:1]], signals)
    owners = np.array([i for i, _ in rows])
    about = {"world": config.world, **describe(), "sequences": len(rows), "episodes": len(set(owners)), "steps": steps}
    about |= {"seed": config.seed, "dtype": str(model.dtype).removeprefix("torch.")}
    made = []
    for name in (*signals, *FREE):
        more = {} if name in FREE else {**spent[name], **bounds(columns[name], real[name], errors)}
        made.append({**about, **row_of(config, name, columns[name], errors, owners), **more})
    for name in signals:
        column = smoothed(columns[name], config.smooth)
        made.append({**about, **row_of(config, f"{name}, mean of {config.smooth}", column, errors, owners)})
    return made


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table: over all steps, among steps of one age, and at each horizon."""
    horizons = [key for key in rows[0] if key.startswith("at_")]
    head = "".join(f"{key.replace('at_', 'rho @'):>9}" for key in horizons)
    first = f"{'signal':24}{'rho':>7}{'[95 %]':>14}{'AUC':>6}{'[95 %]':>12}{'rho, same age':>15}{'AUC':>6}"
    print(f"{first}{head}{'CPU ms':>8}")
    for row in rows:
        ends = f"[{row['spearman_low']:.2f} {row['spearman_high']:.2f}]"
        wide = f"[{row['auc_low']:.2f} {row['auc_high']:.2f}]"
        by = "".join(f"{row[key]['spearman']:9.2f}" for key in horizons)
        cost = f"{row['cpu_ms']:8.1f}" if "cpu_ms" in row else ""
        print(
            f"{row['signal']:24}{row['spearman']:7.2f}{ends:>14}{row['auc']:6.2f}{wide:>12}"
            f"{row['spearman_same_age']:15.2f}{row['auc_same_age']:6.2f}{by}{cost}"
        )


def picture(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Rank correlation and area under the curve by horizon, uint8 [h, w, 3]."""
    shown = [row for row in rows if "mean of" not in row["signal"]]
    horizons = [int(key.removeprefix("at_")) for key in rows[0] if key.startswith("at_")]
    colours = [*COLOURS, "#c0392b", "#8a8a8a", "#bbbbbb", "#444444"]

    def panel(key: str, title: str, y: str) -> Axes:
        lines = [
            Line(row["signal"], horizons, [row[f"at_{h}"][key] for h in horizons], colour)
            for row, colour in zip(shown, colours, strict=False)
        ]
        return Axes(title, "steps dreamed", y, lines, ticks=horizons, log_x=True)

    title = "Worst tenth of the steps at this horizon"
    return plot([panel("spearman", "Signal against the real error", "Spearman's rho"), panel("auc", title, "AUC")])


def finite(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> None:
    try:
        config = tyro.cli(GuardsConfig, description=__doc__)
        rows = run(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    show(rows)
    if config.out:
        write_rows(config.out, [finite(row) for row in rows])
    if config.plot:
        config.plot.parent.mkdir(parents=True, exist_ok=True)
        write_sheet(config.plot, picture(rows)[None], columns=1, scale=1)


if __name__ == "__main__":
    main()
