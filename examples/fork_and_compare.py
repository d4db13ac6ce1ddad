"""One past, several futures: a world is forked for each action, and what comes of them is set side by side."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from inferix_env.actions import neutral
from inferix_env.env import WorldSimEnv
from inferix_env.evaluation.sheets import sheet
from inferix_env.record import write_sheet
from inferix_env.scripts import parse_script


def choices(env: WorldSimEnv) -> list[str]:
    """All actions of a discrete world, by name where they have one."""
    if not isinstance(env.action_space, gym.spaces.Discrete):
        raise ValueError(f"the actions {env.action_space} cannot all be tried: choose some with --actions")
    return list(getattr(env.world_spec.actions, "names", ())) or [str(i) for i in range(int(env.action_space.n))]


def dream(env: WorldSimEnv, script: list[Any], steps: int) -> np.ndarray:
    """Frames uint8 [1 + steps, H, W, 3] from where the env stands on; the script's last action is held."""
    frames = [env.frames[-1]]
    for step in range(steps):
        action = script[min(step, len(script) - 1)]
        frames.append(np.zeros_like(frames[0]) if env.over else env.step(action)[0])
    return np.stack(frames)


def main(
    world: str = "doom-take-cover",
    actions: tuple[str, ...] = (),
    before: int = 16,
    steps: int = 24,
    columns: int = 7,
    seed: int = 0,
    out: Path = Path("out/fork_and_compare.png"),
) -> np.ndarray:
    """Write a picture of the futures, a row each; black is after an episode's end. The same arguments, the same file.

    Args:
        world: a world's name or folder.
        actions: what each fork does; an action by name or number, or a script such as "left*8, right". All by default.
        before: steps of no action before the world is forked.
        steps: how long each future is.
        columns: how many frames of each are shown, the first of them the one they share.
        seed: of the world that is forked.
        out: the picture.
    """
    if before < 0 or steps < 1 or columns < 2:
        raise ValueError(f"before {before}, steps {steps}, columns {columns}: expected at least 0, 1 and 2")
    env = WorldSimEnv(world=world)
    spec = env.world_spec.actions
    scripts = {name: parse_script(name, spec) for name in actions or choices(env)}
    env.reset(seed=seed)
    dream(env, [neutral(spec)], before)
    if env.over:
        raise ValueError(f"the episode of seed {seed} ended within {before} steps: choose another seed, or fewer")
    futures = {}
    for name, script in scripts.items():
        fork = env.fork()  # the same noise: only the actions differ
        futures[name] = dream(fork, script, steps)
        fork.close()
    env.close()
    shown = np.unique(np.linspace(0, steps, columns).round().astype(int))
    rows = [(name.replace(", ", ",\n"), frames[shown]) for name, frames in futures.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_sheet(out, sheet(rows, [f"+{step}" for step in shown])[None], columns=1, scale=1)
    print(f"{out}: {len(futures)} futures of {steps} steps")
    return np.stack(list(futures.values()))


if __name__ == "__main__":
    tyro.cli(main)
