"""python -m agents.planner --modes dream real --candidates 1 16 64: model-predictive control by forking a world.

At every plan the world is forked into as many candidates, each dreams on under actions of its own, and the first
actions of the best are taken. All candidates are worlds of one vector env: a step of a plan is one batched call. What
is acted in is a dream of the same world (its forks get other noise than the future that comes), or, the honest test,
the real env, whose last frames the plan's dream goes on from. `--candidates 1` does not plan: it is the baseline, which
holds random actions as long. `--beside trained` has a policy play the same episodes, which dreams nothing ahead.
OUT/episodes.jsonl gets a line an episode, and the same command goes on where it stopped; OUT/planner.png shows the
return over the candidates, and the policies' as lines across.

Knows inferix_env's public face; how a plan is found is in planning.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

from agents.planning import Dreams, Planner, PlannerConfig
from agents.policies import make_policy
from inferix_env.env import WorldSimEnv
from inferix_env.real import real_env
from inferix_env.record import write_sheet, write_text

# What a row is of: the same values, the same episode.
KEYS = ("world", "mode", "method", "candidates", "rounds", "horizon", "repeat", "interval", "futures", "context")
KEYS = (*KEYS, "weights", "end_cost", "discount", "max_steps", "num_steps", "seed")


class Dreamed:
    """Acting in a dream: a plan goes on from its snapshot. `frame` is the last one."""

    def __init__(self, config: PlannerConfig):
        self.env: gym.Env = WorldSimEnv(config.world, num_steps=config.num_steps, device=config.device)

    def reset(self, seed: int) -> None:
        self.frame, _ = self.env.reset(seed=seed)

    def step(self, action: Any) -> tuple[float, bool]:
        self.frame, reward, terminated, truncated, _ = self.env.step(action)
        return float(reward), terminated or truncated

    def state(self) -> dict[str, Any]:
        """What a plan's dream is reset with."""
        return {"snapshot": self.env.unwrapped.snapshot()}


class Lived:
    """Acting in the real env: a plan goes on from its last frames."""

    def __init__(self, config: PlannerConfig):
        self.env: gym.Env = real_env(config.world)
        self.seen: deque[tuple[Any, np.ndarray, dict[str, float]]] = deque(maxlen=config.context)

    def reset(self, seed: int) -> None:
        frame, info = self.env.reset(seed=seed)
        self.seen.clear()
        self.seen.append((None, frame, info["variables"]))

    def step(self, action: Any) -> tuple[float, bool]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.seen.append((action, frame, info["variables"]))
        return float(reward), terminated or truncated

    @property
    def frame(self) -> np.ndarray:
        """The last one."""
        return self.seen[-1][1]

    def state(self) -> dict[str, Any]:
        """What a plan's dream is reset with."""
        actions, frames, variables = zip(*self.seen, strict=True)
        named = {name: [row[name] for row in variables] for name in variables[0]}
        return {"frames": np.stack(frames), "actions": list(actions[1:]), "variables": named}


Place = Dreamed | Lived


class Actor(Protocol):
    """Chooses what is done in a place. `dreamed`: steps that it dreamed so far, to choose by."""

    @property
    def dreamed(self) -> int: ...

    def reset(self, seed: int) -> None: ...

    def actions(self, place: Place) -> list[Any]:
        """The next ones, at least one."""

    def close(self) -> None: ...


class Planned:
    """Acts on plans."""

    def __init__(self, config: PlannerConfig, space: gym.Space, candidates: int):
        self.planner = Planner(config, space, candidates)
        self.reset, self.close = self.planner.reset, self.planner.close

    @property
    def dreamed(self) -> int:
        return self.planner.dreams.steps if self.planner.dreams else 0

    def actions(self, place: Place) -> list[Any]:
        return list(self.planner.plan(place.state() if self.planner.dreams else {}))


class Followed:
    """Acts as a policy says, and dreams nothing ahead."""

    dreamed = 0

    def __init__(self, policy: str, env: gym.Env, world: str):
        self.policy = make_policy(policy, env, world)
        self.reset = self.policy.reset

    def actions(self, place: Place) -> list[Any]:
        return [self.policy(place.frame)]

    def close(self) -> None:
        """Nothing is open."""


def play(place: Place, actor: Actor, config: PlannerConfig, seed: int, bar: tqdm) -> dict[str, Any]:
    """One episode; what came of it."""
    place.reset(seed)
    actor.reset(seed)
    began, dreamed = time.perf_counter(), actor.dreamed
    total, steps, ended, coming = 0.0, 0, False, list[Any]()
    while steps < config.max_steps and not ended:
        coming = coming or actor.actions(place)
        reward, ended = place.step(coming.pop(0))
        total, steps = total + reward, steps + 1
        bar.update()
    return {
        "return": total,
        "steps": steps,
        "ended": ended,
        "dream_steps": actor.dreamed - dreamed,
        "seconds": round(time.perf_counter() - began, 1),
    }


def identity(config: PlannerConfig, mode: str, method: str, candidates: int, seed: int) -> dict[str, Any]:
    """What an episode follows from."""
    given = asdict(config) | {"mode": mode, "method": method, "candidates": candidates, "seed": seed}
    return json.loads(json.dumps({name: given[name] for name in KEYS}))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Episodes that were played before.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Choose another --out") from None
    if any(not isinstance(row, dict) or not {*KEYS, "return"} <= set(row) for row in rows):
        raise ValueError(f"{path} holds no episodes of this command: choose another --out")
    return rows


def run(config: PlannerConfig) -> list[dict[str, Any]]:
    """Play what is not there yet, keeping each episode as it is done; all rows of this command.

    Raises:
        ValueError: the world, its actions or the folder is not what planning needs.
    """
    config.check()
    config.out.mkdir(parents=True, exist_ok=True)
    path, wanted = config.out / "episodes.jsonl", []
    rows = read_rows(path)
    Dreams(config, 1).close()  # says what is wrong with the world or the weights before anything is played
    for mode in config.modes:
        place = Dreamed(config) if mode == "dream" else Lived(config)
        followed = {policy: Followed(policy, place.env, config.world) for policy in config.beside}
        for method, candidates in [(config.method, n) for n in config.candidates] + [(p, 0) for p in config.beside]:
            seeds = range(config.seed, config.seed + config.episodes)
            marks = [identity(config, mode, method, candidates, seed) for seed in seeds]
            wanted += marks
            missing = [mark for mark in marks if not any(mark.items() <= row.items() for row in rows)]
            if not missing:
                continue
            actor = Planned(config, place.env.action_space, candidates) if candidates else followed[method]
            for mark in missing:
                name = f"{mode}, {candidates or method}, seed {mark['seed']}"
                with tqdm(desc=name, unit="step", disable=None) as bar:
                    rows.append({**mark, **play(place, actor, config, mark["seed"], bar)})
                write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            actor.close()
        place.env.close()
    return [row for row in rows if any(mark.items() <= row.items() for mark in wanted)]


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean return and its standard error by mode, method and candidates."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["method"], row["candidates"]), []).append(row)
    made = []
    for (mode, method, candidates), group in sorted(groups.items()):
        returns = np.array([row["return"] for row in group])
        steps = sum(row["steps"] for row in group)
        made.append(
            {
                "mode": mode,
                "method": method,
                "candidates": candidates,
                "episodes": len(group),
                "mean": float(returns.mean()),
                "error": float(returns.std(ddof=1) / np.sqrt(len(group))) if len(group) > 1 else 0.0,
                "dream_steps_per_step": sum(row["dream_steps"] for row in group) / steps,
                "seconds_per_step": sum(row["seconds"] for row in group) / steps,
            }
        )
    return made


def picture(config: PlannerConfig, found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return over candidates, a panel a mode, with the policies' return across it, uint8 [h, w, 3]."""
    from inferix_env.evaluation.plots import COLOURS, DREAM, REAL, Axes, Line, plot

    panels = []
    for mode, colour in (("dream", DREAM), ("real", REAL)):
        own = [row for row in found if row["mode"] == mode and row["candidates"]]
        if not own:
            continue
        x, y, error = ([row[key] for row in own] for key in ("candidates", "mean", "error"))
        lines = [Line(f"{config.method}, horizon {config.horizon}", x, y, colour, error=error)]
        policies = [row for row in found if row["mode"] == mode and not row["candidates"]]
        for row, shade in zip(policies, cycle(COLOURS[1:]), strict=False):
            name = f"policy {row['method']}, {row['mean']:.0f} ± {row['error']:.0f}"
            lines.append(Line(name, x, [row["mean"]] * len(x), shade, style="curve"))
        where = "acting in a dream" if mode == "dream" else "acting in the real env"
        title = f"{config.world}, {where}, {config.episodes} episodes a point"
        label = "candidates a plan (1: random actions)"
        panels.append(
            Axes(title, label, "return, mean and standard error", lines, ticks=config.candidates, log_x=True, floor=0.0)
        )
    return plot(panels, width=6.4, height=4.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting, 130 for Ctrl-C."""
    try:
        config = tyro.cli(PlannerConfig, args=arguments, prog="python -m agents.planner", description=__doc__)
        found = summary(run(config))
        for row in found:
            print(
                ", ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                )
            )
        write_sheet(config.out / "planner.png", picture(config, found)[None], columns=1, scale=1)
    except ImportError as error:
        print(f"error: the plot needs matplotlib: pip install 'inferix-env[evaluate]' ({error})", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the episodes that were done are kept, and the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
