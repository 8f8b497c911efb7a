"""One task from the text of a file: what is wrong with it is a ``ConfigError`` that says where it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from agentrl.errors import ConfigError, near_matches, one_line
from agentrl.tasks.contract import Task

__all__ = ["Columns", "as_object", "chosen", "decoded", "parse_json"]

Columns = Mapping[str, str] | None
"""Fields of a task and the columns that they come from; ``None`` for all as they are."""

_DEEPEST = 100
"""Levels of nesting that everything which handles a task can take: it is copied, sent to workers and stored."""


def decoded(raw: bytes, place: str) -> str:
    """``raw`` as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place} is not UTF-8: {error.reason} at byte {error.start}", fix="save it as UTF-8"
        ) from error


def parse_json(raw: bytes, place: str) -> Any:
    """The value that a piece of JSON holds."""
    text = decoded(raw, place).rstrip()
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{place} is not JSON: {error.msg} at column {error.colno}", fix="write one JSON object a line"
        ) from error
    except RecursionError as error:
        raise _too_deep(place) from error
    except ValueError as error:  # A number that Python will not make of so many digits, or that is none.
        reason = one_line(error).partition(";")[0]
        raise ConfigError(
            f"{place} holds a number that cannot be read: {reason}", fix="write it as a string"
        ) from error
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise _too_deep(place)
    return value


def as_object(value: Any, place: str) -> Task:
    """``value``, which has to be an object."""
    if not isinstance(value, dict):
        shown = json.dumps(value)
        raise ConfigError(f"{place} holds {shown[:40]}, not an object", fix="a task is a JSON object")
    return value


def chosen(row: Task, columns: Columns, place: str) -> Task:
    """The fields that ``columns`` wants of ``row``."""
    if columns is None:
        return row
    for column in columns.values():
        if column not in row:
            raise ConfigError(f"{place} has no column {column!r}", fix=near_matches(column, row))
    return {field: row[column] for field, column in columns.items()}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _too_deep(place: str) -> ConfigError:
    return ConfigError(f"{place} is nested deeper than {_DEEPEST} levels", fix="write the inner part as a string")


def _depth(value: Any) -> int:
    """How many lists and objects lie around the innermost value; no recursion, since that is what is in doubt."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
