"""The SQLite file of the episode store: its schema, how it is opened, what its errors mean."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from agentrl.errors import RunError, cannot_write
from agentrl.runs.codec import COLUMNS, Row
from agentrl.runs.folder import is_network_filesystem

__all__ = [
    "SCHEMA_VERSION",
    "SELECT",
    "Journal",
    "close_for_writing",
    "database_error",
    "insert",
    "mark_trained",
    "open_for_reading",
    "open_for_writing",
]

Journal = Literal["wal", "delete"]
"""SQLite's names: a write-ahead log, or the rollback journal that every file system can do."""

Verb = Literal["read", "write"]

SCHEMA_VERSION = 5

_APPLICATION_ID = 0x61726C31
"""Says what the file is: ``arl1``."""

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE tasks (
    digest BLOB PRIMARY KEY,        -- of data: equal tasks are stored once, however many episodes they have
    data TEXT NOT NULL              -- JSON
);
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY,         -- in the order of their commits
    phase TEXT NOT NULL,
    group_ordinal INTEGER NOT NULL, -- of its group in the phase: for training its position in the task order
    task INTEGER NOT NULL,          -- index in its task set
    sample INTEGER NOT NULL,        -- index in its group
    version INTEGER NOT NULL,       -- of the policy when the episode was dispatched
    trained_step INTEGER,           -- the optimiser step whose batch its group was in; NULL for none yet
    outcome TEXT NOT NULL,
    reward REAL,
    seconds REAL NOT NULL,
    attempts INTEGER NOT NULL,
    sampled_tokens INTEGER NOT NULL,
    failure TEXT,                   -- JSON: side, reason, fingerprint
    mistake TEXT,                   -- what the policy did wrong where that ended the episode
    data BLOB NOT NULL REFERENCES tasks,
    answer TEXT NOT NULL,           -- JSON
    call_rewards TEXT NOT NULL,     -- JSON
    reward_parts TEXT NOT NULL,     -- JSON: number by name, for json_extract(reward_parts, '$.format') > 0
    calls TEXT NOT NULL,            -- JSON, as agentrl.runs.codec writes it
    tree BLOB NOT NULL              -- as agentrl.runs.codec packs it
);
CREATE INDEX episodes_by_group ON episodes (phase, group_ordinal);
CREATE INDEX episodes_by_task ON episodes (phase, task);
PRAGMA user_version = {SCHEMA_VERSION};
PRAGMA application_id = {_APPLICATION_ID};
COMMIT;
"""

_INSERT = f"INSERT INTO episodes ({', '.join(COLUMNS)})"
"""Takes rows of ``COLUMNS``; it is made of this package's own names, never of data."""
_INSERT_TASKS = "INSERT OR IGNORE INTO tasks (digest, data)"
_MARK = "UPDATE episodes SET trained_step = ? WHERE phase = 'train' AND group_ordinal"
_DATA = COLUMNS.index("data")
_VALUES_AT_ONCE = 999
"""Older builds of SQLite take no more in a statement."""

_READ = ", ".join("tasks.data" if column == "data" else column for column in COLUMNS)
SELECT = f"SELECT id, {_READ} FROM episodes JOIN tasks ON digest = episodes.data"  # noqa: S608
"""Gives each episode's id, and then the row that ``insert`` was given."""

_BUSY_SECONDS = 30.0


def open_for_writing(path: Path) -> tuple[sqlite3.Connection, Journal]:
    """Open or make the database at ``path``, with a write-ahead log where the file system can do that.

    Any one thread at a time may use the connection. Raises ``RunError`` where the file cannot be made, or
    is not an episode store of this schema.
    """
    with _reported(path, "write"):
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        with _closed_on_error(connection):
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables:
                _check_schema(connection, path)
            journal = _start_journal(connection, path)
            # Only so does a commit reach the disk, and not just the system, before it returns.
            connection.execute("PRAGMA synchronous = FULL")
            if not tables:
                connection.executescript(_SCHEMA)
    return connection, journal


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the store at ``path``, also beside its writer. Raises ``RunError`` where there is none to read."""
    if not path.exists():
        raise RunError(f"no episode store at {path}")
    with _reported(path, "read"):
        connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
        with _closed_on_error(connection):
            _check_schema(connection, path)
    return connection


def insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Insert all rows or none, and return once they are on disk. Raises what SQLite raises.

    Many rows are one statement: Python's interpreter lock is let go and taken again with every statement, and
    beside a busy event loop each of those waits.
    """
    if not rows:
        return
    digests = [_digest(row[_DATA]) for row in rows]
    tasks = {digest: row[_DATA] for digest, row in zip(digests, rows, strict=True)}
    episodes = [(*row[:_DATA], digest, *row[_DATA + 1 :]) for digest, row in zip(digests, rows, strict=True)]
    connection.execute("BEGIN IMMEDIATE")
    try:
        _insert(connection, _INSERT_TASKS, list(tasks.items()))
        _insert(connection, _INSERT, episodes)
        connection.execute("COMMIT")
    except Exception:
        # On a full disk SQLite may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def mark_trained(connection: sqlite3.Connection, groups: Sequence[int], step: int) -> None:
    """Set ``trained_step`` of the episodes of training ``groups``, given by their ordinals, all or none.

    Raises what SQLite raises.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for start in range(0, len(groups), _VALUES_AT_ONCE - 1):
            some = groups[start : start + _VALUES_AT_ONCE - 1]
            connection.execute(f"{_MARK} IN ({', '.join('?' * len(some))})", [step, *some])
        connection.execute("COMMIT")
    except Exception:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> None:
    width = len(rows[0]) if rows else 1
    places, at_once = f"({', '.join('?' * width)})", _VALUES_AT_ONCE // width
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        connection.execute(
            f"{statement} VALUES {', '.join([places] * len(some))}", [value for row in some for value in row]
        )


def _digest(data: str) -> bytes:
    return hashlib.sha256(data.encode(errors="surrogatepass")).digest()


def close_for_writing(connection: sqlite3.Connection) -> None:
    """Close, and leave one file that can be read anywhere: a log needs a folder that its reader can write to."""
    # Not while somebody reads, nor on a full disk: then the log stays, and the next reader deals with it.
    with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA journal_mode = delete")


def _start_journal(connection: sqlite3.Connection, path: Path) -> Journal:
    if not is_network_filesystem(path.parent):
        # A file system without shared memory or locks fails here in many ways; what is wrong with the file
        # itself the rollback journal meets again.
        with contextlib.suppress(sqlite3.OperationalError):
            (mode,) = connection.execute("PRAGMA journal_mode = wal").fetchone()
            if mode == "wal":
                return "wal"
    connection.execute("PRAGMA journal_mode = delete")
    return "delete"


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise RunError(f"{path} is not an episode store")
    if version != SCHEMA_VERSION:
        raise RunError(
            f"the episode store {path} has schema {version} and this agentrl has {SCHEMA_VERSION}",
            fix="use the version of agentrl-core that wrote it",
        )


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _reported(path: Path, verb: Verb) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise database_error(path, error, verb) from error


def database_error(path: Path, error: sqlite3.Error, verb: Verb) -> RunError:
    """The one-line error for what SQLite raised about the store at ``path``."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_NOTADB":
        return RunError(f"{path} is not an episode store: {error}")
    if name.startswith("SQLITE_BUSY"):
        return RunError(
            f"cannot {verb} {path}: another process has kept it locked for {_BUSY_SECONDS:.0f} s",
            fix="close the program that has it open",
        )
    if verb == "write":
        return cannot_write(path, error)
    return RunError(f"cannot read {path}: {error}")
