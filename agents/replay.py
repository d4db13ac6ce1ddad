"""Replays a log: same env, same seed, same actions, and compares every step with what was recorded, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.episodes import VERSIONS, action_from, advance, begin, make_env, read_log


def replay(path: Path, options: Mapping[str, Any]) -> tuple[int, str | None]:
    """Play a log's actions again.

    Args:
        path: a log that a rollout wrote.
        options: `world`, `num_steps`, `device`, in place of what the log says of them.

    Returns:
        How many steps were equal, and what first differed, None if nothing did.

    Raises:
        ValueError: the file is no log, or its env cannot be made.
    """
    header, lines = read_log(path)
    env = make_env(header["env"], {**header["make"], **options})
    try:
        actions = [action_at(path, number, line, env) for number, line in enumerate(lines, start=2)]
        _, episode = begin(env, header["seed"], {})
        if episode.header["sha256"] != header["sha256"]:
            return 0, explain(path, 1, ["sha256"], header)
        for number, (line, action) in enumerate(zip(lines, actions, strict=True), start=2):
            advance(env, action, episode)
            changed = differing(line, episode.lines[-1])
            if changed:
                return number - 2, explain(path, number, changed, header)
            if (line["terminated"] or line["truncated"]) and number <= len(lines):
                return number - 1, f"{path} goes on after line {number}, where the episode ended"
    finally:
        env.close()
    return len(lines), None


def action_at(path: Path, number: int, line: Mapping[str, Any], env) -> Any:
    try:
        return action_from(line["action"], env.action_space)
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
