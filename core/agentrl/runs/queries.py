"""What episodes are asked for by, filters, orders, counts and keys, as conditions and columns of SQL."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Sequence
from typing import Any, cast, get_args

from agentrl.errors import ConfigError, shown
from agentrl.rollout.contract import EpisodeKey, Phase
from agentrl.runs.contract import CountKey, EpisodeFilter, SortKey
from agentrl.runs.migrations import FIRST_WITH_TABLES, call_texts
from agentrl.runs.schema import BETWEEN_TEXTS, MESSAGE_TEXTS, has_search, storable, unindexed_from

__all__ = ["condition", "counted_by", "ordered", "parse_key", "phrases", "storable_int"]

_CONDITIONS = {
    "phase": "phase = :phase",
    "group": "group_ordinal = :group",
    "task": "task = :task",
    "step": "(trained_step = :step OR (phase <> 'train' AND version = :step))",
    "version": "version = :version",
    "outcome": "outcome = :outcome",
    "side": "failure_side = :side",
    "fate": "fate = :fate",
    "tool": "id IN (SELECT episode FROM tools WHERE tool = :tool)",
    "min_reward": "reward >= :min_reward",
    "max_reward": "reward <= :max_reward",
}
_ORDERS: dict[SortKey, str] = {
    "committed": "id",
    "reward": "reward",
    "seconds": "seconds",
    "tokens": "sampled_tokens",
    "calls": "call_count",
    "attempts": "attempts",
    "group": "group_ordinal",
    "task": "task",
    "sample": "sample",
    "step": "trained_step",
    "version": "version",
    "phase": "phase",
    "outcome": "outcome",
    "side": "failure_side",
    "fate": "fate",
    "advantage": "advantage",
    "surprise": "surprise",
    "started": "started",
}
_COUNTED: dict[CountKey, str] = {
    "phase": "phase",
    "outcome": "outcome",
    "side": "failure_side",
    "step": "trained_step",
    "fate": "fate",
    "tool": "tool",
    "task": "task",
    "version": "version",
}
_KEY = re.compile(f"({'|'.join(get_args(Phase))})" + 3 * "-([0-9]{1,30})")
_QUERY = re.compile(r'"([^"]*)"|(\S+)')
_WORD = re.compile(rf"[^\W_]+|{BETWEEN_TEXTS}")


def parse_key(text: str) -> EpisodeKey:
    """The key that ``str`` wrote, such as ``train-12-3-0``. Raises ``ConfigError`` for another text."""
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} is not the key of an episode", fix="write it as PHASE-GROUP-TASK-SAMPLE, such as train-12-3-0"
        )
    return EpisodeKey(cast(Phase, match[1]), int(match[2]), int(match[3]), int(match[4]))


def storable_int(number: int) -> int | float:
    """``number`` as SQLite can compare it; one that no column can hold as the float beside it."""
    try:
        return number if -(2**63) <= number < 2**63 else float(number)
    except OverflowError:
        return math.copysign(math.inf, number)


def ordered(sort: SortKey, descending: bool) -> str:
    """``ORDER BY`` for a sort: what has no such value comes last, and equal ones in the order of their commits.

    Raises ``TypeError`` for a text that is no sort.
    """
    if sort not in _ORDERS:
        raise TypeError(f"episodes cannot be sorted by {sort!r}, only by {', '.join(_ORDERS)}")
    column, direction = _ORDERS[sort], "DESC" if descending else "ASC"
    return f"id {direction}" if column == "id" else f"{column} IS NULL, {column} {direction}, id"


def counted_by(by: CountKey) -> str:
    """The column that episodes are counted by. Raises ``TypeError`` for a text that names none."""
    if by not in _COUNTED:
        raise TypeError(f"episodes cannot be counted by {by!r}, only by {', '.join(_COUNTED)}")
    return _COUNTED[by]


def condition(
    connection: sqlite3.Connection, version: int, filters: EpisodeFilter
) -> tuple[str, dict[str, str | bytes | int | float]]:
    """An SQL condition for ``filters``, and the values of its parameters.

    Raises ``ConfigError`` for a value that could not narrow anything down: a text without a word, and NaN.
    """
    wanted = cast(dict[str, Any], dict(filters))
    if unknown := wanted.keys() - EpisodeFilter.__annotations__.keys():
        raise TypeError(f"episodes cannot be filtered by {', '.join(sorted(unknown))}")
    values = {name: value for name, value in wanted.items() if value is not None}
    for name in ("min_reward", "max_reward"):
        if values.get(name) != values.get(name):
            raise ConfigError(f"{name} is NaN, with which no reward compares", fix="give a number")
    conditions = [_CONDITIONS[name] for name in values if name != "text"]
    if "text" in values:
        found, parameters = _search(connection, version, phrases(values.pop("text")))
        conditions.append(found)
        values |= parameters
    if "tool" in values:
        values["tool"] = storable(values["tool"])
    values = {name: storable_int(value) if isinstance(value, int) else value for name, value in values.items()}
    return " AND ".join(conditions) or "1", values


def phrases(text: str) -> list[str]:
    """The words, and the quoted phrases, of a search, each with a ``*`` at its end where it may go on.

    Raises ``ConfigError`` where there is none: every episode would match.
    """
    found = [(" ".join(_words(quoted or plain)), plain.endswith("*")) for quoted, plain in _QUERY.findall(text)]
    wanted = [phrase + "*" * is_prefix for phrase, is_prefix in found if phrase]
    if not wanted:
        raise ConfigError(
            f"text={shown(text, 40)} holds no word to search for", fix="signs are not searched, only letters and digits"
        )
    return wanted


def _words(text: str) -> list[str]:
    """The words of ``text`` in lower case, as SQLite's tokeniser ``unicode61`` finds them."""
    return _WORD.findall(text.lower())


def _search(connection: sqlite3.Connection, version: int, wanted: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The episodes whose messages hold all of ``wanted``: by the index, and one by one what is not indexed."""

    def holds(text: bytes | None) -> bool:
        words = f" {' '.join(_words((text or b'').decode(errors='replace')))} "
        return all(f" {each[:-1]}" in words if each.endswith("*") else f" {each} " in words for each in wanted)

    connection.create_function("holds", 1, holds, deterministic=True)
    if version < FIRST_WITH_TABLES:
        connection.create_function("call_texts", 1, call_texts, deterministic=True)
        return "id IN (SELECT id FROM main.episodes WHERE holds(call_texts(calls)))", {}
    texts = f"SELECT episode, group_concat(text, ' {BETWEEN_TEXTS} ') AS texts FROM ({MESSAGE_TEXTS}) GROUP BY episode"
    scan = f"SELECT episode FROM ({texts}) WHERE holds(CAST(texts AS BLOB))"
    if not has_search(connection):
        return f"id IN ({scan})", {"first": 0}
    match = " ".join(f'"{phrase.rstrip("*")}"{"*" * phrase.endswith("*")}' for phrase in wanted)
    parameters = {"match": match, "first": unindexed_from(connection)}
    return f"(id IN (SELECT rowid FROM search WHERE search MATCH :match) OR id IN ({scan}))", parameters
