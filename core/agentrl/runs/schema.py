"""The SQLite file of the episode store: its tables, how it is opened, and what SQLite's errors mean.

``docs/store.md`` explains the tables to users. Lists of numbers are little-endian arrays in BLOB columns, and
everything that has a structure is JSON text, which SQLite's own functions read. A text that UTF-8 cannot encode, since
it holds half of a surrogate pair, is a BLOB in its TEXT column, encoded with Python's ``surrogatepass``.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from agentrl.errors import RunError, cannot_write
from agentrl.runs.folder import is_network_filesystem

__all__ = [
    "BETWEEN_TEXTS",
    "CALL_COLUMNS",
    "EPISODE_COLUMNS",
    "MESSAGE_TEXTS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "STEP_COLUMNS",
    "TEXT_KEYS",
    "TOOL_COLUMNS",
    "TRAINED_COLUMNS",
    "TREE_COLUMNS",
    "JournalMode",
    "called_tools",
    "close_for_writing",
    "closed_on_error",
    "damaged",
    "database_error",
    "has_search",
    "index_messages",
    "open_for_reading",
    "open_for_writing",
    "storable",
    "stored_text",
    "transaction",
    "unindexed_from",
]

JournalMode = Literal["wal", "delete"]
"""SQLite's names: a write-ahead log, or the rollback journal that every file system can do."""

Row = Sequence[Any]

SCHEMA_VERSION = 9
"""``PRAGMA user_version`` of the files that are written; ``agentrl.runs.migrations`` reads the versions before it."""

APPLICATION_ID = 0x61726C31
"""``PRAGMA application_id`` of every episode store: the letters ``arl1``."""

SCHEMA = """
CREATE TABLE tasks (
    digest BLOB PRIMARY KEY,            -- SHA-256 of data: equal tasks are stored once
    data TEXT NOT NULL                  -- JSON: the task, as the agent got it
);
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY,             -- 1, 2, 3, … in the order in which the episodes were committed
    phase TEXT NOT NULL,                -- train, eval (sampled) or eval-greedy
    group_ordinal INTEGER NOT NULL,     -- number of the episode's group in its phase
    task INTEGER NOT NULL,              -- index of the task in its task set
    sample INTEGER NOT NULL,            -- index in the group
    version INTEGER NOT NULL,           -- policy version (optimiser steps done) at the dispatch of the episode
    trained_step INTEGER,               -- optimiser step whose batch the group was in; NULL before, and in evaluations
    outcome TEXT NOT NULL,              -- rewarded, rejected or failed
    reward REAL,                        -- NULL unless rewarded
    seconds REAL NOT NULL,              -- wall-clock time of the last attempt
    attempts INTEGER NOT NULL,          -- how many times the agent was run
    call_count INTEGER NOT NULL,        -- rows in calls
    sampled_tokens INTEGER NOT NULL,    -- tokens that the policy sampled
    fate TEXT,                          -- trained, without_difference, …; NULL before its step ends, and in evaluations
    advantage REAL,                     -- mean over its trained tokens; NULL where there are none
    surprise REAL,                      -- mean of -log-probability over its sampled tokens; NULL where there are none
    started REAL,                       -- when the last attempt began, in seconds since the epoch; NULL if not recorded
    failure_side TEXT,                  -- agent, policy, reward, backend, gateway, worker, …; NULL unless failed
    failure_reason TEXT,                -- what failed
    failure_fingerprint TEXT,           -- what failures of the same origin share; may be empty
    mistake TEXT,                       -- the policy's mistake that ended the episode, if one did
    mistake_fingerprint TEXT NOT NULL,  -- what mistakes of the same origin share; may be empty
    setbacks TEXT NOT NULL,             -- JSON: [side, reason, fingerprint] of each failure that was tried again
    data BLOB NOT NULL REFERENCES tasks,
    answer TEXT NOT NULL,               -- JSON: what the agent returned for a reward function to score
    call_rewards TEXT NOT NULL,         -- JSON: rewards of single calls by call id
    reward_parts TEXT NOT NULL          -- JSON: named parts of the reward
);
CREATE INDEX episodes_by_group ON episodes (phase, group_ordinal);
CREATE INDEX episodes_by_task ON episodes (phase, task);
CREATE INDEX episodes_by_step ON episodes (trained_step) WHERE trained_step IS NOT NULL;
CREATE TABLE calls (
    episode INTEGER NOT NULL REFERENCES episodes,
    ordinal INTEGER NOT NULL,           -- 0, 1, 2, … in the order of the calls
    id TEXT NOT NULL,                   -- the response id that the agent saw
    parent TEXT,                        -- id of the call whose conversation it continues; NULL for a new one
    request TEXT NOT NULL,              -- JSON: the request, without what it repeats of the parent's
    repeated TEXT,                      -- JSON: {"fields": …, "items": …}, what it repeats; NULL for nothing
    message TEXT NOT NULL,              -- JSON: the assistant message that the agent got
    finish_reason TEXT NOT NULL,        -- stop, length, tool_calls, …
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,              -- wall-clock time of the call
    delivered INTEGER NOT NULL,         -- 0 where the client disconnected before it had the answer
    fork_reason TEXT,                   -- why the history was rendered anew instead of extended; NULL where it was not
    overridden TEXT NOT NULL,           -- JSON: request fields that rollout.override changed
    unmet TEXT NOT NULL,                -- JSON: what the request asked for and did not get
    control_tokens TEXT NOT NULL,       -- JSON: control tokens that texts of the request spelled out
    normalised TEXT NOT NULL,           -- JSON: what rules of gateway.normalise replaced, as a list of replacements
    started REAL,                       -- seconds from the start of the last attempt to the request, or NULL
    waited REAL,                        -- seconds from the request to the first token, or NULL
    PRIMARY KEY (episode, ordinal)
);
CREATE TABLE trees (
    episode INTEGER PRIMARY KEY REFERENCES episodes,
    spans TEXT NOT NULL,                -- JSON: [parent, fork, tokens, …] for each span of the tree
    ids BLOB NOT NULL,                  -- int32: the token ids of all spans, in order
    logprobs BLOB NOT NULL,             -- float32 or float64: a log-probability for each sampled token
    versions BLOB NOT NULL,             -- int32: the policy version of each sampled token
    alternatives TEXT                   -- JSON: by index of a span, for each of its tokens [id, log-probability] pairs
);
CREATE TABLE tools (
    tool TEXT NOT NULL,                 -- name of a tool that the policy called
    episode INTEGER NOT NULL REFERENCES episodes,
    PRIMARY KEY (tool, episode)
) WITHOUT ROWID;
CREATE TABLE trained (
    episode INTEGER PRIMARY KEY REFERENCES episodes,
    step INTEGER NOT NULL,              -- the optimiser step that made this of the episode's sampled tokens
    fates BLOB NOT NULL,                -- uint8: 0 trained, 1 constrained, 2 stale, 3 unrewarded, 4 left_out
    advantages BLOB,                    -- float32 or float64 a token: of the loss; NULL where no token has a value
    weights BLOB,                       -- the share in the step's loss
    logprobs BLOB,                      -- the learner's log-probability before the step
    entropies BLOB,                     -- the entropy of the learner's distribution
    importances BLOB                    -- the weight of the off-policy correction
);
CREATE TABLE steps (
    step INTEGER PRIMARY KEY,           -- number of the optimiser step; the row is there before the step begins
    trained TEXT NOT NULL,              -- JSON: ordinals of the training groups that the step trains
    left_out TEXT NOT NULL,             -- JSON: ordinals of those that it consumes without training them
    stale TEXT NOT NULL                 -- JSON: ordinals of those that were dropped before it, to be rolled out again
);
"""

SEARCH = "CREATE VIRTUAL TABLE search USING fts5(text, content='', tokenize='unicode61 remove_diacritics 0')"
"""A full-text index of the messages, one document an episode; left out where SQLite was built without FTS5."""

EPISODE_COLUMNS = (
    *("id", "phase", "group_ordinal", "task", "sample", "version", "trained_step", "outcome", "reward", "seconds"),
    *("attempts", "call_count", "sampled_tokens", "fate", "advantage", "surprise", "started", "failure_side"),
    *("failure_reason", "failure_fingerprint", "mistake", "mistake_fingerprint", "setbacks", "data", "answer"),
    *("call_rewards", "reward_parts"),
)
CALL_COLUMNS = (
    *("episode", "ordinal", "id", "parent", "request", "repeated", "message", "finish_reason", "prompt_tokens"),
    *("completion_tokens", "seconds", "delivered", "fork_reason", "overridden", "unmet", "control_tokens"),
    *("normalised", "started", "waited"),
)
TREE_COLUMNS = ("episode", "spans", "ids", "logprobs", "versions", "alternatives")
TOOL_COLUMNS = ("tool", "episode")
TRAINED_COLUMNS = ("episode", "step", "fates", "advantages", "weights", "logprobs", "entropies", "importances")
STEP_COLUMNS = ("step", "trained", "left_out", "stale")

_BUSY_SECONDS = 30.0
_BUSY_READING_SECONDS = 5.0
"""Commits take a fraction of one, and a person waits for what is read."""
_RESTORE = "restore it from a copy"

TEXT_KEYS = ("content", "text", "arguments", "name", "reasoning_content", "thinking", "input", "output")
"""Under which keys of messages the texts are that a search looks at."""
_LISTS = ("messages", "input", "system")
"""Fields of requests that hold messages, in one protocol or another."""
_LONE_TEXTS = ("$.input", "$.instructions", "$.system", "$.prompt")
"""Paths in requests at which one text may be."""
BETWEEN_TEXTS = "\ue000"
"""A word of no text, which stands between two texts of an episode so that no phrase goes across them."""
_TEXTS = f"j.type = 'text' AND j.key IN {TEXT_KEYS}"
_IN_LISTS = " OR ".join(f"j.path LIKE '$.{name}[%'" for name in _LISTS)
MESSAGE_TEXTS = f"""
SELECT episode, 2 * ordinal AS position, j.id AS item, j.atom AS text
FROM calls, json_tree(CASE WHEN json_valid(request) THEN request ELSE '{{}}' END) AS j
WHERE episode >= :first AND ({_TEXTS} AND ({_IN_LISTS}) OR j.type = 'text' AND j.fullkey IN {_LONE_TEXTS})
UNION ALL
SELECT episode, 2 * ordinal + 1, j.id, j.atom
FROM calls, json_tree(CASE WHEN json_valid(message) THEN message ELSE '{{}}' END) AS j
WHERE episode >= :first AND {_TEXTS}
"""
"""The texts of the messages of all episodes from id ``:first`` on, each once: contents, thoughts, tool calls."""

_INDEX = f"""
INSERT INTO search (rowid, text)
SELECT id, texts FROM episodes LEFT JOIN (
    SELECT episode, group_concat(text, ' {BETWEEN_TEXTS} ') AS texts FROM ({MESSAGE_TEXTS}) GROUP BY episode
) ON episode = id
WHERE id >= :first ORDER BY id
"""


def open_for_writing(path: Path) -> tuple[sqlite3.Connection, JournalMode]:
    """Open or make the store at ``path``, with a write-ahead log where the file system can do that.

    A store of an older schema is rewritten in the present one. Any one thread at a time may use the connection. Raises
    ``RunError`` where the file cannot be made, is not an episode store, or has a newer schema.
    """
    with _reported(path, "write"):
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        with closed_on_error(connection):
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            version = schema_version(connection, path) if tables else 0
            mode = _start_journal(connection, path)
            # Without it a commit returns when the operating system has the data, not the disk.
            connection.execute("PRAGMA synchronous = FULL")
            if version < SCHEMA_VERSION:
                with transaction(connection):
                    _make(connection, version)
    return connection, mode


def open_for_reading(path: Path) -> tuple[sqlite3.Connection, int]:
    """Open the store at ``path`` without changing it, also while its run writes; returns its schema version, too.

    The connection may be used by any one thread at a time. Raises ``RunError`` where there is no store, it cannot be
    read, or has a newer schema.
    """
    if not path.exists():
        raise RunError(f"no episode store at {path}", fix="a run makes it when it starts; is this a run folder?")
    with _reported(path, "read"):
        uri = f"file:{quote(str(path.resolve()))}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_READING_SECONDS, check_same_thread=False)
        with closed_on_error(connection):
            version = schema_version(connection, path)
    return connection, version


def _make(connection: sqlite3.Connection, version: int) -> None:
    """Make the tables in a new file, or rewrite a file of an older schema ``version`` with them."""
    from agentrl.runs.migrations import FIRST_WITH_TABLES, add_to, rewrite

    statements = SCHEMA.split(";\n")

    def create() -> None:
        for statement in statements:
            connection.execute(statement)
        with contextlib.suppress(sqlite3.OperationalError):  # Not every SQLite has FTS5.
            connection.execute(SEARCH)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    if not version:
        create()
    elif version < FIRST_WITH_TABLES:
        rewrite(connection, version, create)
    else:
        add_to(connection, version, statements)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def storable(text: str) -> str | bytes:
    """``text`` for a TEXT column; its bytes where it holds half a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
    return text


def called_tools(message: Mapping[str, Any]) -> Iterator[str]:
    """The name of the tool in each tool call of an assistant message."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(name := function.get("name"), str):
            yield name


def stored_text(value: str | bytes) -> str:
    """The text that ``storable`` took."""
    return value if isinstance(value, str) else value.decode(errors="surrogatepass")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block writes, durably, when it ends; where it raises, nothing is written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # On a full disk SQLite may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def close_for_writing(connection: sqlite3.Connection) -> None:
    """Close the connection and leave one file, without a log, that can be read from a read-only folder.

    While somebody reads, and on a full disk, the log stays beside the file; both together are complete.
    """
    with contextlib.closing(connection), contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA journal_mode = delete")


def has_search(connection: sqlite3.Connection) -> bool:
    """Whether the store has a full-text index, and this SQLite can use it."""
    try:
        connection.execute("SELECT rowid FROM search LIMIT 1")
    except sqlite3.OperationalError:
        return False
    return True


def unindexed_from(connection: sqlite3.Connection) -> int:
    """The id from which on episodes are not in the full-text index yet."""
    (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM search_docsize").fetchone()
    return int(last) + 1


def index_messages(connection: sqlite3.Connection) -> None:
    """Add every episode that is missing in the full-text index. Raises what SQLite raises."""
    with transaction(connection):
        connection.execute(_INDEX, {"first": unindexed_from(connection)})


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of the open file ``path``. Raises ``RunError`` where it is none that can be read."""
    if not path.stat().st_size:
        raise RunError(f"the episode store {path} is empty", fix=f"wait where its run has just begun, else {_RESTORE}")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise RunError(f"{path} is not an episode store", fix=_RESTORE)
    if not 1 <= version <= SCHEMA_VERSION:
        raise RunError(
            f"the episode store {path} has schema {version} and this agentrl reads 1 to {SCHEMA_VERSION}",
            fix="use the version of agentrl-core that wrote it, or a newer one",
        )
    return int(version)


def _start_journal(connection: sqlite3.Connection, path: Path) -> JournalMode:
    if not is_network_filesystem(path.parent):
        # A file system without shared memory or locks fails here in many ways. A fault of the file itself
        # shows again with the rollback journal.
        with contextlib.suppress(sqlite3.OperationalError):
            (mode,) = connection.execute("PRAGMA journal_mode = wal").fetchone()
            if mode == "wal":
                return "wal"
    connection.execute("PRAGMA journal_mode = delete")
    return "delete"


@contextlib.contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close the connection where the block raises."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _reported(path: Path, verb: Literal["read", "write"]) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise database_error(path, error, verb) from error


def damaged(path: Path, how: str) -> RunError:
    """The error for a store at ``path`` whose content is not whole."""
    return RunError(f"the episode store {path} is damaged: {how}", fix=_RESTORE)


def database_error(path: Path, error: sqlite3.Error, verb: Literal["read", "write"]) -> RunError:
    """The one-line error for what SQLite raised about the store at ``path``."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_NOTADB":
        return RunError(f"{path} is not an episode store: {error}", fix=_RESTORE)
    if name == "SQLITE_CORRUPT" or name.startswith("SQLITE_CORRUPT_"):
        return damaged(path, str(error))
    if name.startswith("SQLITE_BUSY"):
        waited = _BUSY_SECONDS if verb == "write" else _BUSY_READING_SECONDS
        return RunError(
            f"cannot {verb} {path}: another process has kept it locked for {waited:.0f} s",
            fix="close the program that has it open",
        )
    if verb == "write":
        return cannot_write(path, error)
    if "decode" in str(error):  # A text that is no UTF-8: nothing that SQLite itself has written.
        return damaged(path, str(error))
    return RunError(f"cannot read {path}: {error}")
