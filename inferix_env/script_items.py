"""One item of an action script, such as `w+look(+0.1,0)` or `"a red fox"`, to an action. Errors point at the column.

Knows what a spec's actions are, and what further words of a world stand for; knows no files and no counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from engine import ActionSpec, BinaryActions, ContinuousActions, DictActions, DiscreteActions, TextActions
from inferix_env.actions import NO_KEY, key_vector, neutral
from inferix_env.game_keys import is_game
from inferix_env.script_words import NEUTRAL, index_of, is_pedal, key_names, listed, numbers_of

TERM = re.compile(r"([^()]*?)\s*(?:\(([^()]*)\)\s*)?", re.DOTALL)
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
# What a term asks for: a part, one key of it or "" for the whole part, and the part's value.
Setting = tuple[str, str, Any]


@dataclass(frozen=True)
class Script:
    """A script's text and what its items may say.

    Attributes:
        words: further words and the actions that they stand for, such as a world's keys by their names. What the
            actions call their own goes before them.
    """

    text: str
    actions: ActionSpec
    words: Mapping[str, Any] = field(default_factory=dict)

    def refuse(self, at: int, problem: str) -> NoReturn:
        """Raise a ValueError that shows the line of the text with a caret at position `at`."""
        begin = self.text.rfind("\n", 0, at) + 1
        line = self.text[begin:].split("\n", 1)[0]
        cut = max(0, at - begin - 60)
        shown = line[cut : cut + 100].replace("\t", " ")
        caret = " " * (at - begin - cut) + "^"
        raise ValueError(f"action script: {problem}\n  {shown}\n  {caret}\nknown: {listed(self.actions, self.words)}")


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


def parse_action(script: Script, at: int, body: str) -> Any:
    """The action of one item; `at` is where its body stands in the text."""
    actions = script.actions
    if isinstance(actions, DiscreteActions):
        index = index_of(body, actions)
        index = by_word(body, script.words) if index is None else index
        if index is None:
            script.refuse(at, f"no action {body!r}")
        return index
    if body.casefold() in NEUTRAL:
        return neutral(actions)
    if isinstance(actions, TextActions):
        return parse_prompt(script, at, body, actions)
    if isinstance(actions, ContinuousActions):
        return parse_continuous(script, at, body, actions)
    if isinstance(actions, BinaryActions):
        words = {word: {"": key_vector(value, actions)} for word, value in script.words.items()}
        return parse_parts(replace(script, words=words), at, body, DictActions((("", actions),)))[""]
    return parse_parts(script, at, body, actions)


def parse_prompt(script: Script, at: int, body: str, actions: TextActions) -> str:
    """The prompt of "..."; a backslash before a quote or a backslash is left out."""
    match = QUOTED.fullmatch(body)
    if match is None:
        script.refuse(at, 'expected a prompt in double quotes, and perhaps a count: "a red fox"*4')
    prompt = re.sub(r'\\(["\\])', r"\1", match[1])
    try:
        actions.encode(prompt)
    except ValueError as error:
        script.refuse(at, str(error))
    return prompt


def parse_continuous(script: Script, at: int, body: str, actions: ContinuousActions) -> np.ndarray:
    """float32 [A] of "(0.1,-0.2)", or of its numbers by name and of words: "gas+steer(-0.5)", "left+gas"."""
    if not body.startswith("(") and (actions.names or script.words):
        parts = numbers_of(actions)
        words = {word: split(key_vector(value, actions), parts) for word, value in script.words.items()}
        made = parse_parts(replace(script, words=words), at, body, parts)
        return np.concatenate(list(made.values()))
    name, numbers, where = parse_term(script, at, body)
    if name or numbers is None:
        script.refuse(at, f"no action {body!r}")
    return parse_vector(script, where, numbers, actions)


def split(vector: np.ndarray, parts: DictActions) -> dict[str, np.ndarray]:
    return {name: vector[i : i + 1] for i, (name, _) in enumerate(parts.parts)}


def parse_parts(script: Script, at: int, body: str, actions: DictActions) -> dict[str, Any]:
    """The parts and keys that terms joined by + set; the others are neutral."""
    action = neutral(actions)
    named: set[tuple[str, str]] = set()
    for start, term in pieces(body, at, "+"):
        start, word = start + len(term) - len(term.lstrip()), term.strip()
        for name, key, value in parse_settings(script, start, word, actions):
            if {(name, key), (name, "")} & named or (not key and name in dict(named)):
                script.refuse(start, f"{key or name!r} stands twice in one action")
            named.add((name, key))
            action[name] = pressed(action[name], key, key_names(dict(actions.parts)[name])) if key else value
    return action


def parse_settings(script: Script, at: int, word: str, actions: DictActions) -> list[Setting]:
    """What one term asks for: a key, a part with or without its value, or what a word of the world stands for."""
    given = word.casefold()
    keys = {key.casefold(): (name, key, 1) for name, part in actions.parts for key in key_names(part)}
    if given in keys:
        return [keys[given]]
    meant = by_word(word, script.words)
    if meant is not None and given not in parts_by_name(actions):
        return settings_of(meant, actions)
    return [parse_part(script, at, word, actions)]


def by_word(word: str, words: Mapping[str, Any]) -> Any:
    """What a world's word stands for, in any case; None where it has no such word."""
    return {name.casefold(): action for name, action in words.items()}.get(word.casefold())


def settings_of(action: Mapping[str, Any], actions: DictActions) -> list[Setting]:
    """In what an action differs from the neutral one."""
    still, made = neutral(actions), []
    for name, part in actions.parts:
        differs = np.not_equal(action[name], still[name])
        if key_names(part):
            downs = differs & np.greater(action[name], 0)
            made += [(name, key, 1) for key, down in zip(key_names(part), downs, strict=True) if down]
        elif differs.any():
            made.append((name, "", action[name]))
    return made


def pressed(keys: np.ndarray, key: str, names: tuple[str, ...]) -> np.ndarray:
    """Keys int8 [n] with one more of them down; it takes the place of the one that stands for none."""
    down = {name for name, is_down in zip(names, keys, strict=True) if is_down} - {NO_KEY} | {key}
    return np.array([name in down for name in names], np.int8)


def parts_by_name(actions: DictActions) -> dict[str, tuple[str, ActionSpec]]:
    """Casefolded name -> (name, part); a Matrix-Game's mouse is called look, too."""
    known = {name.casefold(): (name, part) for name, part in actions.parts}
    if is_game(actions) and "mouse" in known:
        known.setdefault("look", known["mouse"])
    return known


def parse_part(script: Script, at: int, term: str, actions: DictActions) -> Setting:
    """(name, "", value) of one term: `w`, `move(2)`, `look(0.1,0)`, or `gas` for as much of it as there is."""
    given, inside, where = parse_term(script, at, term)
    known = parts_by_name(actions)
    if given.casefold() not in known:
        script.refuse(at, f"no action {given!r}" if given else "expected an action here")
    name, part = known[given.casefold()]
    if inside is None and is_pedal(part):
        return name, "", np.array(part.high, np.float32)
    if isinstance(part, ContinuousActions | BinaryActions):
        if inside is None:
            script.refuse(at, f"{name!r} takes {amount(part)}: {name}(...)")
        return name, "", parse_vector(script, where, inside, part)
    if isinstance(part, DictActions | TextActions):
        script.refuse(at, f"{name!r} holds named parts of its own, which only a JSONL script can set")
    value = index_of("1" if inside is None else inside.strip(), part)
    if value is None:
        script.refuse(where, f"no value {(inside or '1').strip()!r} of {name!r}: expected {listed(part)}")
    return name, "", value


def parse_term(script: Script, at: int, term: str) -> tuple[str, str | None, int]:
    """`name(inside)` -> name, inside (None without parentheses), and where the inside stands in the text."""
    match = TERM.fullmatch(term)
    if match is None:
        bracket = re.search(r"[()]", term)
        script.refuse(at + (bracket.start() if bracket else 0), "these parentheses do not match")
    return match[1].strip(), match[2], at + (match.start(2) if match[2] is not None else 0)


def parse_vector(script: Script, at: int, inside: str, part: ContinuousActions | BinaryActions) -> np.ndarray:
    """float32 [A] of "0.1, -0.2", inside the part's bounds; of keys int8 [n]."""
    numbers = []
    for where, piece in pieces(inside, at, ","):
        try:
            numbers.append(float(piece))
        except ValueError:
            where += len(piece) - len(piece.lstrip())
            script.refuse(where, f"{piece.strip()!r} is no number")
    vector = np.asarray(numbers, np.float32)
    try:
        check(vector, part)
    except ValueError:
        script.refuse(at, f"({inside}): expected {amount(part)}")
    return vector.astype(np.int8) if isinstance(part, BinaryActions) else vector


def amount(part: ContinuousActions | BinaryActions) -> str:
    """What a part takes, in words."""
    if isinstance(part, BinaryActions):
        return f"{part.width} numbers from 0 to 1"
    if part.width == 1:
        return f"a number from {part.low[0]:g} to {part.high[0]:g}"
    return f"{part.width} numbers from {part.low} to {part.high}"


def check(action: Any, actions: ActionSpec) -> None:
    """Raise ValueError unless the spec can encode the action."""
    with np.errstate(invalid="ignore"):  # an unbounded space has no scale to encode to; its shape is what counts
        actions.encode(action)
