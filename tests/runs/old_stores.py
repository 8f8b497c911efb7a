"""Episode stores as earlier versions of agentrl-core wrote them: their SQL, and their way to pack an episode."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from array import array
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import TokenTree

APPLICATION_ID = 0x61726C31

TASKS = """
CREATE TABLE tasks (
    digest BLOB PRIMARY KEY,        -- of data: equal tasks are stored once, however many episodes they have
    data TEXT NOT NULL              -- JSON
);
"""
KEYS = {
    4: "step INTEGER NOT NULL, task INTEGER NOT NULL, sample INTEGER NOT NULL,",
    5: "group_ordinal INTEGER NOT NULL, task INTEGER NOT NULL, sample INTEGER NOT NULL, version INTEGER NOT NULL, "
    "trained_step INTEGER,",
}
INDEX = {
    4: "CREATE INDEX episodes_by_step ON episodes (phase, step);",
    5: "CREATE INDEX episodes_by_group ON episodes (phase, group_ordinal);",
}


def schema(version: int) -> str:
    """The SQL of the version that wrote ``version``."""
    since = 5 if version >= 5 else 4
    return f"""
BEGIN IMMEDIATE;
{TASKS if version >= 3 else ""}
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY,         -- in the order of their commits
    phase TEXT NOT NULL,
    {KEYS[since]}
    outcome TEXT NOT NULL,
    reward REAL,
    seconds REAL NOT NULL,
    attempts INTEGER NOT NULL,
    sampled_tokens INTEGER NOT NULL,
    failure TEXT,                   -- JSON: side, reason
    {"mistake TEXT," if version >= 2 else ""}
    data {"BLOB NOT NULL REFERENCES tasks" if version >= 3 else "TEXT NOT NULL"},
    answer TEXT NOT NULL,           -- JSON
    call_rewards TEXT NOT NULL,     -- JSON
    {"reward_parts TEXT NOT NULL," if version >= 4 else ""}
    calls TEXT NOT NULL,            -- JSON, as agentrl.runs.codec writes it
    tree BLOB NOT NULL              -- as agentrl.runs.codec packs it
);
{INDEX[since]}
CREATE INDEX episodes_by_task ON episodes (phase, task);
PRAGMA user_version = {version};
PRAGMA application_id = {APPLICATION_ID};
COMMIT;
"""


def write(path: Path, version: int, episodes: Sequence[tuple[int, Episode]]) -> None:
    """Write a store of schema ``version``; before 5 an episode has the ``step`` beside it in the place of its group."""
    if version >= 6:
        write_without_later_columns(path, version, [episode for _, episode in episodes])
        return
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(schema(version))
    for step, episode in episodes:
        row = to_row(episode, version, step)
        if version >= 3:
            data = row["data"]
            row["data"] = hashlib.sha256(data.encode(errors="surrogatepass")).digest()
            connection.execute("INSERT OR IGNORE INTO tasks (digest, data) VALUES (?, ?)", (row["data"], data))
        names, values = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO episodes ({names}) VALUES ({values})", list(row.values()))
    connection.close()


LATER_COLUMNS = {
    7: ["calls.normalised"],
    8: ["episodes.mistake_fingerprint", "episodes.setbacks"],
    9: [
        *("episodes.fate", "episodes.advantage", "episodes.surprise", "episodes.started"),
        *("calls.started", "calls.waited", "trees.alternatives"),
    ],
}
"""The columns that a schema brought."""
LATER_TABLES = {8: ["steps"], 9: ["tools", "trained"]}
"""The tables that a schema brought. Since 6 nothing else has changed."""


def write_without_later_columns(path: Path, version: int, episodes: Sequence[Episode]) -> None:
    """Write a store of 6 or later: one of today without the columns and tables that came afterwards."""
    with EpisodeStore(path) as store:
        store.submit(episodes).result()
    connection = sqlite3.connect(path, isolation_level=None)
    for since, columns in LATER_COLUMNS.items():
        for column in columns if since > version else ():
            table, name = column.split(".")
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
    for since, tables in LATER_TABLES.items():
        for table in tables if since > version else ():
            connection.execute(f"DROP TABLE {table}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def to_row(episode: Episode, version: int, step: int) -> dict[str, Any]:
    key, failure = episode.key, episode.failure
    row = {"phase": key.phase, "task": key.task, "sample": key.sample}
    if version >= 5:
        row |= {"group_ordinal": key.group, "version": episode.version, "trained_step": episode.trained_step}
    else:
        row["step"] = step
    if failure is not None:
        told = {"side": failure.side, "reason": failure.reason}
        # The first stores did not have it, then it was called cause.
        told |= {"fingerprint": failure.fingerprint} if version >= 5 else {"cause": failure.fingerprint}
        row["failure"] = json.dumps({name: told[name] for name in list(told)[: 2 if version < 3 else 3]})
    if version >= 2:
        row["mistake"] = episode.mistake
    if version >= 4:
        row["reward_parts"] = json.dumps(dict(episode.reward_parts))
    return row | {
        "outcome": episode.outcome,
        "reward": episode.reward,
        "seconds": episode.seconds,
        "attempts": episode.attempts,
        "sampled_tokens": sum(len(span.ids) for span in episode.tree.spans if span.sampled is not None),
        "data": json.dumps(episode.data),
        "answer": json.dumps(episode.answer),
        "call_rewards": json.dumps(episode.call_rewards),
        "calls": json.dumps(calls_to_json(episode.calls, version)),
        "tree": pack_tree(episode.tree),
    }


def calls_to_json(calls: Sequence[Call], version: int) -> list[dict[str, Any]]:
    requests: dict[str, Any] = {}
    rows = []
    for call in calls:
        row = {field.name: getattr(call, field.name) for field in fields(call)}
        later = {"normalised", "started", "waited"} | (
            {"unmet", "control_tokens", "delivered"} if version == 1 else set()
        )
        row = {name: value for name, value in row.items() if name not in later}
        row["request"] = beyond(requests.get(call.parent or "", {}), call.request)
        rows.append(row)
        requests[call.id] = call.request
    return rows


def beyond(parent: Any, request: Any) -> dict[str, Any]:
    same = [name for name in request if name in parent and parent[name] == request[name]]
    shared = {
        name: count for name in request if name not in same and (count := common(parent.get(name), request[name]))
    }
    new = {
        name: value[shared[name] :] if name in shared else value for name, value in request.items() if name not in same
    }
    return {"same": same, "shared": shared, "new": new}


def common(one: object, other: object) -> int:
    if not isinstance(one, list) or not isinstance(other, list):
        return 0
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def pack_tree(tree: TokenTree) -> bytes:
    shape: list[list[Any]] = []
    ids, versions, logprobs = array("i"), array("i"), array("d")
    for span in tree.spans:
        ids.extend(span.ids)
        sampled = span.sampled
        if sampled is None:
            shape.append([span.parent, span.fork, len(span.ids)])
            continue
        shape.append([span.parent, span.fork, len(span.ids), sampled.call, sampled.temperature, sampled.constrained])
        logprobs.extend(sampled.logprobs)
        versions.extend(sampled.versions)
    single = array("f", logprobs)
    packed: array[float] = single if array("d", single) == logprobs else logprobs
    head = json.dumps(shape).encode()
    return b"".join(
        (
            struct.Struct("<cI").pack(packed.typecode.encode(), len(head)),
            head,
            ids.tobytes(),
            versions.tobytes(),
            packed.tobytes(),
        )
    )
