"""Episode stores of the schemas 1 to 8, read with the tables of the present one or rewritten in them.

1: all of an episode in one row. 2: ``mistake``. 3: tasks in a table of their own. 4: ``reward_parts``. 5: the ordinal
of the group, the policy version and the trained step in the place of ``step``. 6: calls and token trees in tables of
their own, failures in columns. 7: ``normalised``. 8: the table ``steps``,
and what was tried again. 9: the tables ``tools`` and ``trained``, the fate, advantage and surprise of an episode, when
episodes and calls began, alternatives of tokens.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agentrl.runs.schema import (
    BETWEEN_TEXTS,
    CALL_COLUMNS,
    EPISODE_COLUMNS,
    STEP_COLUMNS,
    TEXT_KEYS,
    TRAINED_COLUMNS,
    TREE_COLUMNS,
    called_tools,
    storable,
)
from agentrl.runs.trained import numbers

__all__ = [
    "FIRST_WITH_STEPS",
    "FIRST_WITH_TABLES",
    "add_to",
    "call_rows",
    "call_texts",
    "rewrite",
    "shadow",
    "tree_row",
]

FIRST_WITH_TABLES = 6
"""The first schema that keeps calls and trees in tables; before it they are columns of ``episodes``."""

FIRST_WITH_STEPS = 8
"""The first schema that keeps which groups a step takes."""

FIRST_WITH_TRAINED = 9
"""The first schema that keeps which tools were called, and what a step made of tokens."""

_Later = Mapping[str, tuple[int, str]]
"""Columns that a later schema brought: the number of that schema, and their value before it."""

_LATER_OF_CALLS: _Later = {"normalised": (7, "'[]'"), "started": (9, "NULL"), "waited": (9, "NULL")}
_LATER_OF_EPISODES: _Later = {
    "mistake_fingerprint": (8, "''"),
    "setbacks": (8, "'[]'"),
    "fate": (9, "NULL"),
    "advantage": (9, "NULL"),
    "surprise": (9, "(SELECT old_surprise(logprobs, versions) FROM trees WHERE episode = id)"),
    "started": (9, "NULL"),
}
_LATER_OF_TREES: _Later = {"alternatives": (9, "NULL")}

_TOOLS = """
SELECT DISTINCT value AS tool, episode FROM calls, json_each(old_tools(message)) WHERE message LIKE '%"tool_calls"%'
"""
_TOOLS_OF_EPISODES = """
SELECT DISTINCT value AS tool, e.id AS episode FROM main.episodes AS e, json_each(old_tools_of_calls(e.calls))
"""
"""The same of a schema before 6."""

_STEPS = """
INSERT INTO steps (step, trained, left_out, stale)
SELECT trained_step, json_group_array(group_ordinal), '[]', '[]'
FROM (SELECT DISTINCT trained_step, group_ordinal FROM episodes WHERE trained_step NOT NULL ORDER BY 1, 2)
GROUP BY trained_step
"""
"""Before there was the table, a step consumed the groups that it trained, and no others."""

_TREE_HEAD = struct.Struct("<cI")

_STEP = "CASE phase WHEN 'train' THEN max(step - 1, 0) ELSE step END"
_ORDINAL = "dense_rank() OVER (PARTITION BY phase ORDER BY step, task) - 1"
_TRAINED = "CASE phase WHEN 'train' THEN step END"


def _columns(version: int) -> dict[str, str]:
    """How each column of the present ``episodes`` is computed from a row of the schema ``version``."""
    columns = dict(zip(EPISODE_COLUMNS, _since(EPISODE_COLUMNS, _LATER_OF_EPISODES, version), strict=True)) | {
        "call_count": "old_call_count(calls)",
        "failure_side": "old_failure(failure, 'side')",
        "failure_reason": "old_failure(failure, 'reason')",
        "failure_fingerprint": "old_failure(failure, 'fingerprint')",
        "surprise": "old_surprise_of_tree(tree)",
    }
    if version < 5:
        # ``step`` was the optimiser step that a training batch was for, or the version that was evaluated.
        columns |= {"group_ordinal": _ORDINAL, "version": _STEP, "trained_step": _TRAINED}
    if version < 4:
        columns["reward_parts"] = "'{}'"
    if version < 3:
        columns["data"] = "old_digest(data)"
    if version < 2:
        columns["mistake"] = "NULL"
    return columns


def _select(version: int, table: str) -> str:
    columns = ", ".join(f"{value} AS {name}" for name, value in _columns(version).items())
    return f"SELECT {columns} FROM {table} ORDER BY id"


def shadow(connection: sqlite3.Connection, version: int) -> None:
    """Make a read-only connection to a store of an older ``version`` see the present tables.

    Since 6 they are views. Before it ``episodes`` and ``tasks`` are temporary tables in memory, and there are neither
    calls nor trees, which stay in ``main.episodes``: episodes that are committed later are not seen. Raises what SQLite
    raises.
    """
    _add_functions(connection)
    connection.execute("PRAGMA temp_store = memory")
    if version < FIRST_WITH_STEPS:
        _view(connection, "steps", _nothing(STEP_COLUMNS))
    _view(connection, "trained", _nothing(TRAINED_COLUMNS))
    if version >= FIRST_WITH_TABLES:
        for table, columns, later in _GROWN:
            _view(connection, table, f"SELECT {_named(columns, _since(columns, later, version))} FROM main.{table}")
        _view(connection, "tools", _TOOLS)
        return
    _view(connection, "tools", _TOOLS_OF_EPISODES)
    connection.execute(f"CREATE TEMP TABLE episodes AS {_select(version, 'main.episodes')}")
    connection.execute("CREATE INDEX temp.by_id ON episodes (id)")
    if version < 3:
        tasks = "SELECT DISTINCT old_digest(data) AS digest, data FROM main.episodes"
        connection.execute(f"CREATE TEMP TABLE tasks AS {tasks}")
        connection.execute("CREATE INDEX temp.by_digest ON tasks (digest)")


_GROWN = (
    ("episodes", EPISODE_COLUMNS, _LATER_OF_EPISODES),
    ("calls", CALL_COLUMNS, _LATER_OF_CALLS),
    ("trees", TREE_COLUMNS, _LATER_OF_TREES),
)
"""Tables since 6 that later schemas gave more columns."""


def _view(connection: sqlite3.Connection, name: str, select: str) -> None:
    connection.execute(f"CREATE TEMP VIEW {name} AS {select}")


def _nothing(columns: Sequence[str]) -> str:
    return f"SELECT {', '.join(f'NULL AS {name}' for name in columns)} WHERE 0"


def _named(columns: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(
        name if name == value else f"{value} AS {name}" for name, value in zip(columns, values, strict=True)
    )


def _since(columns: Sequence[str], later: _Later, version: int) -> list[str]:
    """How a store of ``version`` gives each of ``columns``: by its name, or by its value before ``later``."""
    since = (later.get(name, (0, "")) for name in columns)
    return [name if version >= first else value for name, (first, value) in zip(columns, since, strict=True)]


def add_to(connection: sqlite3.Connection, version: int, statements: Sequence[str]) -> None:
    """Add what is new since ``version``, which has tables for calls and trees, inside the open transaction.

    ``statements`` make the present tables and indexes. Raises what SQLite raises.
    """
    _add_functions(connection)
    # Otherwise the tables that refer to `episodes` would refer to its old rows from now on.
    connection.execute("PRAGMA legacy_alter_table = ON")
    for table, columns, later in _GROWN:
        if any(since > version for since, _ in later.values()):
            connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
            for (index,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL AND tbl_name = ?",
                (f"old_{table}",),
            ).fetchall():
                connection.execute(f"DROP INDEX {index}")
            for statement in statements:
                if f"CREATE TABLE {table} " in statement or f" ON {table} " in statement:
                    connection.execute(statement)
            select = _named(columns, _since(columns, later, version))
            connection.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {select} FROM old_{table} ORDER BY rowid"
            )
            connection.execute(f"DROP TABLE old_{table}")
    connection.execute("PRAGMA legacy_alter_table = OFF")
    for first, table in ((FIRST_WITH_STEPS, "steps"), (FIRST_WITH_TRAINED, "tools"), (FIRST_WITH_TRAINED, "trained")):
        if version < first:
            connection.execute(next(each for each in statements if f"CREATE TABLE {table} " in each))
    if version < FIRST_WITH_STEPS:
        connection.execute(_STEPS)
    if version < FIRST_WITH_TRAINED:
        connection.execute(f"INSERT INTO tools (tool, episode) {_TOOLS}")


def rewrite(connection: sqlite3.Connection, version: int, create: Callable[[], None]) -> None:
    """Rewrite a store of ``version`` inside the open transaction; ``create`` makes the present tables.

    Raises what SQLite raises.
    """
    _add_functions(connection)
    for (name,) in connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"
    ).fetchall():
        connection.execute(f"DROP INDEX {name}")
    connection.execute("ALTER TABLE episodes RENAME TO old_episodes")
    if version >= 3:
        connection.execute("ALTER TABLE tasks RENAME TO old_tasks")
    create()
    tasks = "SELECT digest, data FROM old_tasks" if version >= 3 else "SELECT old_digest(data), data FROM old_episodes"
    connection.execute(f"INSERT OR IGNORE INTO tasks (digest, data) {tasks}")
    connection.execute(f"INSERT INTO episodes ({', '.join(EPISODE_COLUMNS)}) {_select(version, 'old_episodes')}")
    for id, calls, tree in connection.execute("SELECT id, calls, tree FROM old_episodes"):
        for row in call_rows(calls):
            _insert(connection, "calls", CALL_COLUMNS, (id, *row))
        _insert(connection, "trees", TREE_COLUMNS, (id, *tree_row(tree), None))
    connection.execute(f"INSERT INTO tools (tool, episode) {_TOOLS}")
    connection.execute("DROP TABLE old_episodes")
    connection.execute("DROP TABLE IF EXISTS old_tasks")
    connection.execute(_STEPS)


def _insert(connection: sqlite3.Connection, table: str, columns: tuple[str, ...], row: tuple[Any, ...]) -> None:
    values = ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})", row)


def call_rows(calls: str) -> Iterator[tuple[Any, ...]]:
    """The column ``calls`` of a schema before 6, as rows of ``calls`` after ``episode``."""
    for ordinal, call in enumerate(json.loads(calls)):
        request = call["request"]
        repeated = {"fields": request["same"], "items": request["shared"]}
        yield (
            ordinal,
            call["id"],
            call["parent"],
            json.dumps(request["new"]),
            json.dumps(repeated) if any(repeated.values()) else None,
            json.dumps(call["message"]),
            storable(call["finish_reason"]),
            call["prompt_tokens"],
            call["completion_tokens"],
            call.get("seconds", 0.0),
            call.get("delivered", True),
            None if call["fork_reason"] is None else storable(call["fork_reason"]),
            *(json.dumps(call.get(name, ())) for name in ("overridden", "unmet", "control_tokens", "normalised")),
            None,
            None,
        )


def call_texts(calls: str) -> bytes:
    """The texts of the messages in the column ``calls`` of a schema before 6, as UTF-8."""
    said = [[call["request"]["new"].get("messages"), call["message"]] for call in json.loads(calls)]
    return f" {BETWEEN_TEXTS} ".join(_texts(said)).encode(errors="replace")


def _texts(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, str) and key in TEXT_KEYS:
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def tree_row(tree: bytes) -> tuple[str, bytes, bytes, bytes]:
    """The column ``tree`` of a schema before 6, as a row of ``trees`` after ``episode``."""
    typecode, length = _TREE_HEAD.unpack_from(tree)
    start = _TREE_HEAD.size + length
    spans = tree[_TREE_HEAD.size : start].decode()
    shape = json.loads(spans)
    tokens, sampled = sum(span[2] for span in shape), sum(span[2] for span in shape if len(span) > 3)
    versions = start + 4 * tokens
    logprobs = versions + 4 * sampled
    end = logprobs + sampled * struct.calcsize(typecode.decode())
    return spans, tree[start:versions], tree[logprobs:end], tree[versions:logprobs]


def _add_functions(connection: sqlite3.Connection) -> None:
    connection.create_function("old_digest", 1, _digest, deterministic=True)
    connection.create_function("old_call_count", 1, lambda calls: len(json.loads(calls)), deterministic=True)
    connection.create_function("old_failure", 2, _failure, deterministic=True)
    connection.create_function("old_surprise", 2, _surprise, deterministic=True)
    connection.create_function(
        "old_surprise_of_tree", 1, lambda tree: _surprise(*tree_row(tree)[2:]), deterministic=True
    )
    connection.create_function("old_tools", 1, lambda message: _tools([json.loads(message)]), deterministic=True)
    connection.create_function(
        "old_tools_of_calls",
        1,
        lambda calls: _tools([call["message"] for call in json.loads(calls)]),
        deterministic=True,
    )


def _surprise(logprobs: bytes, versions: bytes) -> float | None:
    drawn = numbers("f" if len(logprobs) == len(versions) else "d", logprobs)
    return -sum(drawn) / len(drawn) if drawn else None


def _tools(messages: Sequence[Mapping[str, Any]]) -> str:
    """The names of the tools that are called in ``messages``, as a JSON list."""
    names = [name for message in messages for name in called_tools(message)]
    return json.dumps([name.encode(errors="replace").decode() for name in names])


def _digest(data: str) -> bytes:
    return hashlib.sha256(data.encode(errors="surrogatepass")).digest()


def _failure(failure: str | None, name: str) -> str | bytes | None:
    if failure is None:
        return None
    stored = json.loads(failure)
    # The fingerprint was called ``cause`` before schema 5, and was not there at first.
    return storable(stored.get(name, stored.get("cause", "")))
