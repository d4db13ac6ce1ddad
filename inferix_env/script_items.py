"""One item of an action script, such as `w+look(+0.1,0)` or `"a red fox"`, to an action. Errors point at the column.

Knows what a spec's actions are; knows no files and no counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from engine import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.actions import NO_KEY, neutral

NEUTRAL = ("noop", "none")
TERM = re.compile(r"([^()]*?)\s*(?:\(([^()]*)\)\s*)?", re.DOTALL)
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def pieces(text: str, offset: int, mark: str, quotes: bool = False) -> Iterator[tuple[int, str]]:
    """(offset, piece) of the pieces between marks that stand outside parentheses, or outside double quotes."""
    depth, begin = 0, 0
    shown = QUOTED.sub(lambda quoted: "_" * len(quoted[0]), text) if quotes else text
    for i, character in enumerate(shown):
        depth += 0 if quotes or mark == "*" else (character == "(") - (character == ")")
        if character == mark and depth <= 0:
            yield offset + begin, text[begin:i]
            begin = i + 1
    yield offset + begin, text[begin:]


def parse_action(text: str, at: int, body: str, actions: ActionSpec) -> Any:
    """The action of one item; `at` is where its body stands in the text."""
    if isinstance(actions, DiscreteActions):
        index = index_of(body, actions)
        if index is None:
            refuse(text, at, f"no action {body!r}", actions)
        return index
    if body.casefold() in NEUTRAL:
        return neutral(actions)
    if isinstance(actions, TextActions):
        return parse_prompt(text, at, body, actions)
    if isinstance(actions, ContinuousActions):
        name, numbers, where = parse_term(text, at, body, actions)
        if name or numbers is None:
            refuse(text, at, f"no action {body!r}", actions)
        return parse_vector(text, where, numbers, actions, actions)
    if isinstance(actions, BinaryActions):
        return parse_parts(text, at, body, DictActions((("", actions),)))[""]
    return parse_parts(text, at, body, actions)


def parse_prompt(text: str, at: int, body: str, actions: TextActions) -> str:
    """The prompt of "..."; a backslash before a quote or a backslash is left out."""
    match = QUOTED.fullmatch(body)
    if match is None:
        refuse(text, at, 'expected a prompt in double quotes, and perhaps a count: "a red fox"*4', actions)
    prompt = re.sub(r'\\(["\\])', r"\1", match[1])
    try:
        actions.encode(prompt)
    except ValueError as error:
        refuse(text, at, str(error), actions)
    return prompt


def parse_parts(text: str, at: int, body: str, actions: DictActions) -> dict[str, Any]:
    """The parts and keys that terms joined by + set; the others are neutral."""
    action = neutral(actions)
    keys = {key.casefold(): (name, key) for name, part in actions.parts for key in key_names(part)}
    named: set[tuple[str, str]] = set()
    for start, term in pieces(body, at, "+"):
        start, word = start + len(term) - len(term.lstrip()), term.strip()
        name, key = keys.get(word.casefold(), ("", ""))
        if key:
            value = pressed(action[name], key, key_names(dict(actions.parts)[name]))
        else:
            name, value = parse_part(text, start, word, actions)
        if {(name, key), (name, "")} & named or (not key and name in dict(named)):
            refuse(text, start, f"{key or name!r} stands twice in one action", actions)
        named.add((name, key))
        action[name] = value
    return action


def key_names(part: ActionSpec) -> tuple[str, ...]:
    return part.names if isinstance(part, BinaryActions) else ()


def pressed(keys: np.ndarray, key: str, names: tuple[str, ...]) -> np.ndarray:
    """Keys int8 [n] with one more of them down; it takes the place of the one that stands for none."""
    down = {name for name, is_down in zip(names, keys, strict=True) if is_down} - {NO_KEY} | {key}
    return np.array([name in down for name in names], np.int8)


def parse_part(text: str, at: int, term: str, actions: DictActions) -> tuple[str, Any]:
    """(name, value) of one term: `w`, `move(2)` or `look(0.1,0)`."""
    given, inside, where = parse_term(text, at, term, actions)
    known = {name.casefold(): (name, part) for name, part in actions.parts}
    if given.casefold() not in known:
        refuse(text, at, f"no action {given!r}" if given else "expected an action here", actions)
    name, part = known[given.casefold()]
    if isinstance(part, ContinuousActions | BinaryActions):
        if inside is None:
            refuse(text, at, f"{name!r} takes {part.width} numbers: {name}(...)", actions)
        return name, parse_vector(text, where, inside, part, actions)
    if isinstance(part, DictActions | TextActions):
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


def parse_vector(
    text: str, at: int, inside: str, part: ContinuousActions | BinaryActions, actions: ActionSpec
) -> np.ndarray:
    """float32 [A] of "0.1, -0.2", inside the part's bounds; of keys int8 [n]."""
    numbers = []
    for where, piece in pieces(inside, at, ","):
        try:
            numbers.append(float(piece))
        except ValueError:
            where += len(piece) - len(piece.lstrip())
            refuse(text, where, f"{piece.strip()!r} is no number", actions)
    vector = np.asarray(numbers, np.float32)
    try:
        check(vector, part)
    except ValueError:
        bounds = "0 to 1" if isinstance(part, BinaryActions) else f"{part.low} to {part.high}"
        refuse(text, at, f"({inside}): expected {part.width} numbers from {bounds}", actions)
    return vector.astype(np.int8) if isinstance(part, BinaryActions) else vector


def check(action: Any, actions: ActionSpec) -> None:
    """Raise ValueError unless the spec can encode the action."""
    with np.errstate(invalid="ignore"):  # an unbounded space has no scale to encode to; its shape is what counts
        actions.encode(action)


def index_of(word: str, actions: DiscreteActions) -> int | None:
    """The discrete action of a name (any case), an integer, or a neutral word; None where there is none."""
    names = [name.casefold() for name in actions.names]
    if word.casefold() in names:
        return names.index(word.casefold())
    if word.casefold() in NEUTRAL:
        return 0
    return int(word) if re.fullmatch(r"[0-9]{1,9}", word) and int(word) < actions.n else None


def listed(actions: ActionSpec) -> str:
    """What a script for these actions may say."""
    if isinstance(actions, DiscreteActions):
        return ", ".join([*actions.names, f"0 to {actions.n - 1}", "noop"])
    if isinstance(actions, ContinuousActions):
        return f"({','.join('x' * actions.width)}) from {actions.low} to {actions.high}, noop"
    if isinstance(actions, TextActions):
        return f'prompts of up to {actions.longest} characters in double quotes, "" to keep the one before, noop'
    if isinstance(actions, BinaryActions):
        return ", ".join([*actions.names, "noop"])
    return ", ".join([*(word for name, part in actions.parts for word in words_of(name, part)), "noop"])


def words_of(name: str, part: ActionSpec) -> list[str]:
    """What a part of several is called in a script."""
    if isinstance(part, BinaryActions) and part.names:
        return list(part.names)
    if isinstance(part, ContinuousActions | BinaryActions):
        return [f"{name}({','.join('x' * part.width)})"]
    return [] if isinstance(part, DictActions | TextActions) else [name]


def refuse(text: str, at: int, problem: str, actions: ActionSpec) -> NoReturn:
    """Raise a ValueError that shows the line of the text with a caret at position `at`."""
    begin = text.rfind("\n", 0, at) + 1
    line = text[begin:].split("\n", 1)[0]
    cut = max(0, at - begin - 60)
    shown = line[cut : cut + 100].replace("\t", " ")
    caret = " " * (at - begin - cut) + "^"
    raise ValueError(f"action script: {problem}\n  {shown}\n  {caret}\nknown: {listed(actions)}")
