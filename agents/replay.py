"""Replays a log: same env, same seed, same actions, and compares every step with what was recorded, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents.episodes import action_from, advance, begin, make_env
from inferix_env.logs import VERSIONS, read_log


class RecordedPolicy:
    """Plays the actions of a log, of a rollout or of a person's session, once; the seed changes nothing.

    With the log's own world and seed the episode is the log's own.

    Attributes:
        finished: whether the log has come to its end.

    Raises:
        ValueError: the file is no log, holds no step, or an action is none of the space; names the line.
    """

    def __init__(self, path: str | Path, space: gym.Space):
        self.actions = [
            action_at(path, number, line, space) for number, line in enumerate(read_log(path).lines, start=2)
        ]
        if not self.actions:
            raise ValueError(f"log {str(path)!r} holds no step")
        self.step = 0

    @property
    def finished(self) -> bool:
        return self.step >= len(self.actions)

    def reset(self, seed: int) -> None:
        self.step = 0

    def __call__(self, observation: Any) -> Any:
        self.step += 1
        return self.actions[self.step - 1]


def replay(path: Path, options: Mapping[str, Any]) -> tuple[int, str | None]:
    """Play a log's actions again.

    Args:
        path: a log that a rollout wrote.
        options: arguments of the env, such as `world`, in place of what the log says of them.

    Returns:
        How many steps were equal, and what first differed, None if nothing did.

    Raises:
        ValueError: the file is no log, or its env cannot be made.
    """
    log = read_log(path)
    header, lines = log.header, log.lines
    env = make_env(header["env"], {**header["make"], **options})
    try:
        actions = [action_at(path, number, line, env.action_space) for number, line in enumerate(lines, start=2)]
        _, episode = begin(env, header["seed"], {})
        if episode.log.header["sha256"] != header["sha256"]:
            return 0, explain(path, 1, ["sha256"], header)
        for number, (line, action) in enumerate(zip(lines, actions, strict=True), start=2):
            advance(env, action, episode)
            changed = differing(line, episode.log.lines[-1])
            if changed:
                return number - 2, explain(path, number, changed, header)
            if (line["terminated"] or line["truncated"]) and number <= len(lines):
                return number - 1, f"{path} goes on after line {number}, where the episode ended"
    finally:
        env.close()
    return len(lines), None


def action_at(path: str | Path, number: int, line: Mapping[str, Any], space: gym.Space) -> Any:
    try:
        return action_from(line["action"], space)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None


def differing(recorded: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Names of the fields that differ; NaN equals NaN."""
    names = sorted({*recorded, *again})
    return [name for name in names if json.dumps(recorded.get(name)) != json.dumps(again.get(name))]


def explain(path: Path, number: int, changed: list[str], header: Mapping[str, Any]) -> str:
    names = ", ".join("frames (sha256)" if name == "sha256" else name for name in changed)
    text = f"{path}, line {number}: the replay differs in {names}"
    recorded = header.get("versions", VERSIONS)
    if recorded != VERSIONS:
        text += f"; it was recorded with {recorded}, here is {VERSIONS}"
    return text
