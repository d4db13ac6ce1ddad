"""Action logs of footage, CSV or JSONL: named columns, a row a frame or a step.

Knows text files; knows no actions and no video.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


@dataclass(frozen=True)
class ActionLog:
    """Rows of one clip.

    Attributes:
        path: of the file, for errors.
        lines: of the file, one for each row.
        columns: name -> the values of all rows, as the file has them.
    """

    path: Path
    lines: tuple[int, ...]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.lines)

    def rows(self, chosen: Sequence[int]) -> ActionLog:
        """Some of the rows."""
        columns = {name: [values[row] for row in chosen] for name, values in self.columns.items()}
        return ActionLog(self.path, tuple(self.lines[row] for row in chosen), columns)

    def number(self, name: str, row: int) -> float:
        """A value as a number.

        Raises:
            ValueError: it is none; names file, line and column.
        """
        try:
            value = float(self.columns[name][row])
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            self.refuse(name, row, "a number")
        return value

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 [T]; zeros where there is no such column."""
        return np.array([self.number(name, row) if name in self.columns else 0.0 for row in range(len(self))])

    def truths(self, name: str) -> np.ndarray:
        """A column as bool [T]; all False where there is no such column."""
        return np.array([self.truth(name, row) if name in self.columns else False for row in range(len(self))], bool)

    def truth(self, name: str, row: int) -> bool:
        word = str(self.columns[name][row]).strip().casefold()
        if word not in TRUTHS:
            self.refuse(name, row, "true or false, 1 or 0")
        return TRUTHS[word]

    def refuse(self, name: str, row: int, expected: str) -> NoReturn:
        value = self.columns[name][row]
        raise ValueError(f"{self.path}, line {self.lines[row]}: column {name!r} is {value!r}: expected {expected}")


def read_log(path: Path) -> ActionLog:
    """Rows of a CSV file with a first line of names, or of a JSONL file of objects.

    A first JSONL line {"header": ...} is passed over; an action that is an object or a list becomes columns
    "action.NAME" or "action.0".

    Raises:
        ValueError: the file cannot be read, or a row lacks a column that others have; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"action log {path} cannot be read: {error}") from None
    rows = list((csv_rows if path.suffix == ".csv" else json_rows)(path, text))
    if not rows:
        raise ValueError(f"action log {path} holds no row")
    names = list(rows[0][1])
    for line, row in rows:
        if set(row) != set(names):
            missing = sorted(set(names) ^ set(row))
            raise ValueError(f"{path}, line {line}: it and the first row do not both have {missing}")
    return ActionLog(path, tuple(line for line, _ in rows), {name: [row[name] for _, row in rows] for name in names})


def csv_rows(path: Path, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.reader(text.splitlines())
    names = [name.strip() for name in next(reader, [])]
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise ValueError(f"{path}, line {reader.line_num}: {len(row)} values for {len(names)} columns {names}")
        yield reader.line_num, {name: value.strip() for name, value in zip(names, row, strict=True)}


def json_rows(path: Path, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, column {error.colno}: no JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number}: {line[:40]}: expected an object such as {{"action": 1}}')
        if number > 1 or set(row) != {"header"}:
            yield number, {**{name: value for name, value in row.items() if name != "action"}, **flat_action(row)}


def flat_action(row: Mapping[str, Any]) -> dict[str, Any]:
    """The action of a JSONL row as columns."""
    return dict(flat("action", row["action"])) if "action" in row else {}


def flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield name, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from flat(f"{name}.{key}", part)
