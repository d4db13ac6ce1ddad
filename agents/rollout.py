"""python -m agents.rollout --env ID --policy sticky --episodes 3 --out DIR: play episodes and keep everything.

Each episode becomes episode-000.mp4 (every frame), episode-000.jsonl (one line a step) and episode-000.npz (frames,
actions, rewards); summary.json stands beside them. Any Gymnasium env that shows pictures will do; --world plays a
world folder, --preset a published checkpoint. The same seed gives the same jsonl and npz, bit for bit, and `--replay
DIR/episode-000.jsonl` checks that it does.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro
from tqdm import tqdm

from agents.episodes import Episode, advance, begin, frame_rate, make_env
from agents.policies import Policy, make_policy
from agents.replay import replay
from agents.rollout_settings import Settings
from inferix_env.record import Recorder, import_av, write_text

OUTPUTS = ("episode-*.mp4", "episode-*.npz", "episode-*.jsonl", "summary.json")
WATCHABLE = 480  # pixels: small frames are enlarged up to four times, while they stay within this height


class Interrupts:
    """While entered, the first Ctrl-C sets `asked`, so that the step in hand is finished; the second stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupts:
        self.before = signal.signal(signal.SIGINT, self.note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def note(self, *signalled: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class Rollout:
    """Everything a run needs, checked, and what it has done so far."""

    settings: Settings
    out: Path
    env: gym.Env
    policy: Policy
    stop: Interrupts = field(default_factory=Interrupts)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def prepare(settings: Settings) -> Rollout:
    """Check all settings and make env, policy and folder; no file is written.

    Raises:
        ValueError: a setting is wrong.
    """
    if settings.episodes < 1 or settings.max_steps < 1 or settings.seed < 0:
        raise ValueError("--episodes and --max-steps must be at least 1, --seed at least 0")
    if settings.out is None:
        raise ValueError("--out DIR is missing: where do the episodes go?")
    out = settings.out.expanduser()
    if out.is_dir() and any(out.iterdir()) and not settings.force:
        raise ValueError(f"--out {out} is not empty: choose another folder, or --force to replace the episodes in it")
    if settings.video:
        import_av()
    env = make_env(settings.env_id, settings.options)
    try:
        policy = make_policy(settings.policy, env)
        make_folder(out)
    except ValueError:
        env.close()
        raise
    return Rollout(settings, out, env, policy)


def make_folder(out: Path) -> None:
    """Raise ValueError unless `out` is now a folder that files can be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written to: {error.strerror}") from None


def run(rollout: Rollout) -> None:
    """Play all episodes and write their files; Ctrl-C ends the run after the step in hand."""
    for pattern in OUTPUTS:
        for path in rollout.out.glob(pattern):
            path.unlink()
    with rollout.stop, tqdm(unit="step", disable=None) as bar:
        for index in range(rollout.settings.episodes):
            bar.set_description(f"episode {index + 1} of {rollout.settings.episodes}")
            episode, end = play(rollout, index, bar)
            if episode.log.lines:
                episode.write(stem(rollout, index))
                rollout.rows.append(row(index, episode, end))
                write_text(rollout.out / "summary.json", json.dumps(summary(rollout), indent=1) + "\n")
            if rollout.stop.asked:
                return


def play(rollout: Rollout, index: int, bar: tqdm) -> tuple[Episode, str]:
    """Play one episode, its video written on the way; returns it and what ended it."""
    settings, env = rollout.settings, rollout.env
    seed = settings.seed + index
    about = {"episode": index, "env": settings.env_id, "make": settings.options, "policy": settings.policy}
    rollout.policy.reset(seed)
    observation, episode = begin(env, seed, about)
    with make_recorder(rollout, index, episode) as recorder:
        end = "interrupted" if rollout.stop.asked else ""
        while not end:
            started = time.perf_counter()
            observation = advance(env, rollout.policy(observation), episode)
            rollout.seconds += time.perf_counter() - started
            if recorder:
                if len(episode.log.lines) == 1:
                    recorder.add(episode.frames[0])
                recorder.add(episode.frames[-1])
            bar.update()
            end = ending(rollout, episode)
    return episode, end


def ending(rollout: Rollout, episode: Episode) -> str:
    """What ends the episode after its last step, "" if nothing does."""
    last = episode.log.lines[-1]
    ends = {
        "terminated": last["terminated"],
        "truncated": last["truncated"],
        "log_end": getattr(rollout.policy, "finished", False),
        "max_steps": len(episode.log.lines) >= rollout.settings.max_steps,
        "interrupted": rollout.stop.asked,
    }
    return next((name for name, holds in ends.items() if holds), "")


def make_recorder(rollout: Rollout, index: int, episode: Episode) -> AbstractContextManager[Recorder | None]:
    """A Recorder for the episode's video, or a context that gives None where none is wanted."""
    if not rollout.settings.video:
        return nullcontext()
    height, width = episode.frames[0].shape[1:3]
    scale = max(1, min(4, WATCHABLE // height))
    return Recorder(stem(rollout, index).with_suffix(".mp4"), (height, width), frame_rate(rollout.env), scale)


def stem(rollout: Rollout, index: int) -> Path:
    return rollout.out / f"episode-{index:03d}"


def row(index: int, episode: Episode, end: str) -> dict[str, Any]:
    """An episode in the summary."""
    total = sum(line["reward"] for line in episode.log.lines)
    length = len(episode.log.lines)
    return {"episode": index, "seed": episode.log.header["seed"], "return": total, "length": length, "end": end}


def summary(rollout: Rollout) -> dict[str, Any]:
    """The run so far: its settings, its episodes, and what they come to."""
    settings, rows = rollout.settings, rollout.rows
    steps = sum(r["length"] for r in rows)
    return {
        "env": settings.env_id,
        "make": settings.options,
        "policy": settings.policy,
        "seed": settings.seed,
        "mean_return": sum(r["return"] for r in rows) / len(rows),
        "mean_length": steps / len(rows),
        "steps_per_second": steps / rollout.seconds,
        "episodes": rows,
    }


def report(rollout: Rollout) -> str:
    """The run in one line."""
    rows = rollout.rows
    if not rows:
        return "stopped before the first step: nothing was written"
    s = summary(rollout)
    text = (
        f"episodes {len(rows)}, mean return {s['mean_return']:.3f}, mean length {s['mean_length']:.1f}, "
        f"steps/s {s['steps_per_second']:.1f}, in {rollout.out}"
    )
    if not rollout.stop.asked:
        return text
    last = f", the last one cut after {rows[-1]['length']} steps" if rows[-1]["end"] == "interrupted" else ""
    return f"stopped{last}: {text}"


def check_replay(settings: Settings) -> int:
    """Replay a log and say what came of it."""
    assert settings.replay is not None
    if settings.out is not None:
        raise ValueError("--replay writes nothing: leave --out away")
    steps, problem = replay(settings.replay, settings.options)
    if problem:
        return fail(problem, 1)
    print(f"{settings.replay}: every frame equal, steps {steps}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for a wrong setting, 1 for what fails later, 130 for Ctrl-C."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m agents.rollout", description=__doc__)
    try:
        if settings.replay is not None:
            return check_replay(settings)
        rollout = prepare(settings)
    except ValueError as error:
        return fail(str(error), 2)
    except KeyboardInterrupt:
        return fail("stopped: nothing was written", 130)
    try:
        run(rollout)
    except (ValueError, OSError, gym.error.Error) as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        return fail(f"stopped: {len(rollout.rows)} episodes are kept in {rollout.out}", 130)
    finally:
        rollout.env.close()
    print(report(rollout), file=sys.stderr if rollout.stop.asked else sys.stdout)
    return 130 if rollout.stop.asked else 0


def fail(problem: str, status: int) -> int:
    print(f"error: {problem}" if status != 130 else problem, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
