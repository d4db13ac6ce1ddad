"""Action scripts: "right*12, noop*4, left*8", or a JSONL file, to a list of actions for `env.step`.

    right*12, noop*4, 2          a discrete world: names (any case) or integers, each held for a number of steps
    (0.1,-0.2)*4                 a continuous one: one number for each part of the vector
    steer(-0.5), left+gas*8      or its numbers by their names, `gas` alone for as much as there is; and the world's
                                 keys by theirs, as the viewer takes them
    w+look(+0.1,0)*4, w*12       several named parts at once: a discrete part is set to 1, or to `move(2)`;
                                 parts that an item does not name are neutral
    forward+left*12, mouse(0,0.1)*4   keys by their names, each pressed
    "a red fox runs"*4, ""*8     a world of prompts: each one held, and "" keeps the one before (\\" is a quote)

"noop" and "none" are the neutral action. Knows what a spec's actions are; steps nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from engine import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.script_items import Script, check, parse_action, pieces
from inferix_env.script_words import index_of, listed, words_of_world

LONGEST = 1_000_000


def load_script(script: str | Path, actions: ActionSpec, words: Mapping[str, Any] | None = None) -> list:
    """Actions from a script's text, or from a file where `script` is a Path or ends in ".jsonl".

    Args:
        words: further words that a text may use, and their actions; see `words_of`.

    Raises:
        ValueError: as `parse_script` and `read_jsonl_script` do.
    """
    if isinstance(script, Path) or script.strip().endswith(".jsonl"):
        return read_jsonl_script(script, actions)
    return parse_script(script, actions, words)


def parse_script(text: str, actions: ActionSpec, words: Mapping[str, Any] | None = None) -> list:
    """Actions of a comma-separated script, one for each step.

    Raises:
        ValueError: the text does not parse; shows it with a caret where it fails, and lists what is known.
    """
    script = Script(text, actions, words or {})
    made: list = []
    quotes = isinstance(actions, TextActions)
    for at, item in pieces(text, 0, ",", quotes):
        body = next(pieces(item, 0, "*", quotes))[1]
        count = item[len(body) + 1 :]
        repeats = parse_count(script, at + len(body) + 1, count) if len(body) < len(item) else 1
        start = at + len(body) - len(body.lstrip())
        if not body.strip():
            script.refuse(start, "expected an action here")
        if len(made) + repeats > LONGEST:
            script.refuse(start, f"a script holds at most {LONGEST} actions")
        made += [parse_action(script, start, body.strip())] * repeats
    return made


def read_jsonl_script(path: str | Path, actions: ActionSpec) -> list:
    """Actions of a JSONL file: one a line, bare or as {"action": ...}; a first line {"header": ...} is passed over.

    So the log of an episode is a script. Discrete actions may be given by name.

    Raises:
        ValueError: the file cannot be read, holds no action, or a line holds none; names the line.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"script {str(path)!r} cannot be read: {error}") from None
    script = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if number > 1 or not is_header(value):
                script.append(action_of(value, actions))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, column {error.colno}: no JSON: {error.msg}") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not script:
        raise ValueError(f'script {str(path)!r} holds no action: expected one a line, such as {{"action": 1}}')
    return script


def actions_of(env: gym.Env) -> ActionSpec:
    """What an env's actions are: its world's own spec, or what its action space says.

    Raises:
        ValueError: the space is none that scripts know.
    """
    spec = getattr(env.unwrapped, "world_spec", None)
    return spec.actions if spec is not None else spec_of_space(env.action_space)


def words_of(env: gym.Env) -> dict[str, Any]:
    """What a world's keys are called, and the action of each, in its real env too; {} for any other env."""
    world: Any = env.unwrapped
    return words_of_world(world.card, world.world_spec.actions) if hasattr(world, "world_spec") else {}


def spec_of_space(space: gym.Space) -> ActionSpec:
    """The spec of Discrete (from 0), one-dimensional Box and Dict spaces; ValueError for any other."""
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return DiscreteActions(int(space.n))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return ContinuousActions(tuple(space.low.tolist()), tuple(space.high.tolist()))
    if isinstance(space, gym.spaces.Dict):
        return DictActions(tuple((name, spec_of_space(part)) for name, part in space.spaces.items()))
    raise ValueError(f"action space {space}: scripts know Discrete from 0, Box of one dimension, and Dict of these")


def parse_count(script: Script, at: int, count: str) -> int:
    at += len(count) - len(count.lstrip())
    if not re.fullmatch(r"[0-9]{1,9}", count.strip()) or int(count) < 1:
        script.refuse(at, f"count {count.strip()!r}: expected a whole number from 1")
    return int(count)


def is_header(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"header"}


def action_of(value: Any, actions: ActionSpec) -> Any:
    """The action of one decoded JSON line, checked."""
    parts = {name for name, _ in actions.parts} if isinstance(actions, DictActions) else set()
    if isinstance(value, dict) and set(value) != parts:
        if "action" not in value:
            raise ValueError(f'{value}: expected an action, or {{"action": ...}}; known: {listed(actions)}')
        value = value["action"]
    action = from_json(value, actions)
    check(action, actions)
    return action


def from_json(value: Any, actions: ActionSpec) -> Any:
    """Plain JSON as `env.step` takes it; what does not fit stays as it is, for `encode` to refuse."""
    if isinstance(actions, DictActions) and isinstance(value, dict):
        parts = dict(actions.parts)
        return {name: from_json(v, parts[name]) if name in parts else v for name, v in value.items()}
    if isinstance(actions, ContinuousActions):
        try:
            return np.asarray(value, np.float32).ravel()
        except (TypeError, ValueError):
            raise ValueError(f"action {value!r}: expected {actions.width} numbers") from None
    if isinstance(actions, BinaryActions):
        try:
            return np.asarray(value, np.int8)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"action {value!r}: expected {actions.n} zeros and ones") from None
    if isinstance(actions, DiscreteActions) and isinstance(value, str):
        index = index_of(value, actions)
        if index is None:
            raise ValueError(f"no action {value!r}; known: {listed(actions)}")
        return index
    return value
