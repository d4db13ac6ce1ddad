"""Action scripts: "right*12, noop*4, left*8", or a JSONL file, to a list of actions for `env.step`.

    right*12, noop*4, 2          a discrete world: names (any case) or integers, each held for a number of steps
    (0.1,-0.2)*4                 a continuous one: one number for each part of the vector
    w+look(+0.1,0)*4, w*12       several named parts at once: a discrete part is set to 1, or to `move(2)`;
                                 parts that an item does not name are neutral

"noop" and "none" are the neutral action. Knows what a spec's actions are; steps nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from engine import ActionSpec, ContinuousActions, DictActions, DiscreteActions
from inferix_env.actions import neutral

NEUTRAL = ("noop", "none")
LONGEST = 1_000_000
TERM = re.compile(r"([^()]*?)\s*(?:\(([^()]*)\)\s*)?", re.DOTALL)


def load_script(script: str | Path, actions: ActionSpec) -> list:
    """Actions from a script's text, or from a file where `script` is a Path or ends in ".jsonl".

    Raises:
        ValueError: as `parse_script` and `read_jsonl_script` do.
    """
    if isinstance(script, Path) or script.strip().endswith(".jsonl"):
        return read_jsonl_script(script, actions)
    return parse_script(script, actions)


def parse_script(text: str, actions: ActionSpec) -> list:
    """Actions of a comma-separated script, one for each step.

    Raises:
        ValueError: the text does not parse; shows it with a caret where it fails, and lists what is known.
    """
    script: list = []
    for at, item in split(text, 0, ","):
        body, star, count = item.partition("*")
        repeats = parse_count(text, at + len(body) + 1, count, actions) if star else 1
        start = at + len(body) - len(body.lstrip())
        if not body.strip():
            refuse(text, start, "expected an action here", actions)
        if len(script) + repeats > LONGEST:
            refuse(text, start, f"a script holds at most {LONGEST} actions", actions)
        script += [parse_action(text, start, body.strip(), actions)] * repeats
    return script


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


def spec_of_space(space: gym.Space) -> ActionSpec:
    """The spec of Discrete (from 0), one-dimensional Box and Dict spaces; ValueError for any other."""
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return DiscreteActions(int(space.n))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return ContinuousActions(tuple(space.low.tolist()), tuple(space.high.tolist()))
    if isinstance(space, gym.spaces.Dict):
        return DictActions(tuple((name, spec_of_space(part)) for name, part in space.spaces.items()))
    raise ValueError(f"action space {space}: scripts know Discrete from 0, Box of one dimension, and Dict of these")


def split(text: str, offset: int, mark: str) -> Iterator[tuple[int, str]]:
    """(offset, piece) of the pieces between marks that stand outside parentheses."""
    depth, begin = 0, 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == mark and depth <= 0:
            yield offset + begin, text[begin:i]
            begin = i + 1
    yield offset + begin, text[begin:]


def parse_count(text: str, at: int, count: str, actions: ActionSpec) -> int:
    at += len(count) - len(count.lstrip())
    if not re.fullmatch(r"[0-9]{1,9}", count.strip()) or int(count) < 1:
        refuse(text, at, f"count {count.strip()!r}: expected a whole number from 1", actions)
    return int(count)


def parse_action(text: str, at: int, body: str, actions: ActionSpec) -> Any:
    """The action of one item; `at` is where its body stands in the text."""
    if isinstance(actions, DiscreteActions):
        index = index_of(body, actions)
        if index is None:
            refuse(text, at, f"no action {body!r}", actions)
        return index
    if body.casefold() in NEUTRAL:
        return neutral(actions)
    if isinstance(actions, ContinuousActions):
        name, numbers, where = parse_term(text, at, body, actions)
        if name or numbers is None:
            refuse(text, at, f"no action {body!r}", actions)
        return parse_vector(text, where, numbers, actions, actions)
    action, named = neutral(actions), set()
    for start, term in split(body, at, "+"):
        start += len(term) - len(term.lstrip())
        part, value = parse_part(text, start, term.strip(), actions)
        if part in named:
            refuse(text, start, f"{part!r} stands twice in one action", actions)
        named.add(part)
        action[part] = value
    return action


def parse_part(text: str, at: int, term: str, actions: DictActions) -> tuple[str, Any]:
    """(name, value) of one term: `w`, `move(2)` or `look(0.1,0)`."""
    given, inside, where = parse_term(text, at, term, actions)
    known = {name.casefold(): (name, part) for name, part in actions.parts}
    if given.casefold() not in known:
        refuse(text, at, f"no action {given!r}" if given else "expected an action here", actions)
    name, part = known[given.casefold()]
    if isinstance(part, ContinuousActions):
        if inside is None:
            refuse(text, at, f"{name!r} takes {part.width} numbers: {name}(...)", actions)
        return name, parse_vector(text, where, inside, part, actions)
    if isinstance(part, DictActions):
        refuse(text, at, f"{name!r} holds named parts of its own, which only a JSONL script can set", actions)
    value = index_of("1" if inside is None else inside.strip(), part)
    if value is None:
        refuse(text, where, f"no value {(inside or '1').strip()!r} of {name!r}: expected {listed(part)}", actions)
    return name, value


def parse_term(text: str, at: int, term: str, actions: ActionSpec) -> tuple[str, str | None, int]:
    """`name(inside)` -> name, inside (None without parentheses), and where the inside stands in the text."""
    match = TERM.fullmatch(term)
    if match is None:
        bracket = re.search(r"[()]", term)
        refuse(text, at + (bracket.start() if bracket else 0), "these parentheses do not match", actions)
    return match[1].strip(), match[2], at + (match.start(2) if match[2] is not None else 0)


def parse_vector(text: str, at: int, inside: str, part: ContinuousActions, actions: ActionSpec) -> np.ndarray:
    """float32 [A] of "0.1, -0.2", inside the part's bounds."""
    numbers = []
    for where, piece in split(inside, at, ","):
        try:
            numbers.append(float(piece))
        except ValueError:
            where += len(piece) - len(piece.lstrip())
            refuse(text, where, f"{piece.strip()!r} is no number", actions)
    vector = np.asarray(numbers, np.float32)
    try:
        check(vector, part)
    except ValueError:
        refuse(text, at, f"({inside}): expected {part.width} numbers from {part.low} to {part.high}", actions)
    return vector


def index_of(word: str, actions: DiscreteActions) -> int | None:
    """The discrete action of a name (any case), an integer, or a neutral word; None where there is none."""
    names = [name.casefold() for name in actions.names]
    if word.casefold() in names:
        return names.index(word.casefold())
    if word.casefold() in NEUTRAL:
        return 0
    return int(word) if re.fullmatch(r"[0-9]{1,9}", word) and int(word) < actions.n else None


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


def check(action: Any, actions: ActionSpec) -> None:
    """Raise ValueError unless the spec can encode the action."""
    with np.errstate(invalid="ignore"):  # an unbounded space has no scale to encode to; its shape is what counts
        actions.encode(action)


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
    if isinstance(actions, DiscreteActions) and isinstance(value, str):
        index = index_of(value, actions)
        if index is None:
            raise ValueError(f"no action {value!r}; known: {listed(actions)}")
        return index
    return value


def listed(actions: ActionSpec) -> str:
    """What a script for these actions may say."""
    if isinstance(actions, DiscreteActions):
        return ", ".join([*actions.names, f"0 to {actions.n - 1}", "noop"])
    if isinstance(actions, ContinuousActions):
        return f"({','.join('x' * actions.width)}) from {actions.low} to {actions.high}, noop"
    names = [
        f"{name}({','.join('x' * part.width)})" if isinstance(part, ContinuousActions) else name
        for name, part in actions.parts
        if not isinstance(part, DictActions)
    ]
    return ", ".join([*names, "noop"])


def refuse(text: str, at: int, problem: str, actions: ActionSpec) -> NoReturn:
    """Raise a ValueError that shows the line of the text with a caret at position `at`."""
    begin = text.rfind("\n", 0, at) + 1
    line = text[begin:].split("\n", 1)[0]
    cut = max(0, at - begin - 60)
    shown = line[cut : cut + 100].replace("\t", " ")
    caret = " " * (at - begin - cut) + "^"
    raise ValueError(f"action script: {problem}\n  {shown}\n  {caret}\nknown: {listed(actions)}")
