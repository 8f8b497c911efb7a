"""Reading an episode store: lists by filter and order, pages, counts, searches, and whole episodes.

Every method opens the file for itself, read-only, so that a run that writes to it is never held up.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Unpack, cast, get_args

from agentrl.errors import ConfigError, RunError
from agentrl.gateway.contract import Call, Replacement
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Outcome, Phase
from agentrl.runs.contract import (
    CountKey,
    EpisodeFilter,
    EpisodeRow,
    GroupRow,
    Membership,
    SortKey,
    TrainedTokens,
)
from agentrl.runs.migrations import (
    FIRST_WITH_STEPS,
    FIRST_WITH_TABLES,
    call_rows,
    call_texts,
    shadow,
    tree_row,
)
from agentrl.runs.schema import (
    BETWEEN_TEXTS,
    CALL_COLUMNS,
    EPISODE_COLUMNS,
    MESSAGE_TEXTS,
    SCHEMA_VERSION,
    STEP_COLUMNS,
    TRAINED_COLUMNS,
    TREE_COLUMNS,
    database_error,
    has_search,
    open_for_reading,
    schema_version,
    storable,
    stored_text,
    unindexed_from,
)
from agentrl.runs.trained import numbers, trained_tokens
from agentrl.tokens.contract import TokenTree

__all__ = ["EpisodeReader", "parse_key"]

_PAGE = 128
"""Whole episodes that are read at once; no transaction is open while the caller looks at them."""

_ROW_COLUMNS = (
    *("id", "phase", "group_ordinal", "task", "sample", "version", "trained_step", "outcome", "reward", "seconds"),
    *("attempts", "call_count", "sampled_tokens", "failure_side", "failure_reason", "mistake"),
    *("fate", "advantage", "surprise", "started"),
)
_ROWS = f"SELECT {', '.join(_ROW_COLUMNS)} FROM episodes"

_UNTAKEN = """
SELECT id FROM episodes WHERE phase = 'train' AND group_ordinal NOT IN (
    SELECT value FROM steps, json_each(trained) UNION ALL SELECT value FROM steps, json_each(left_out)
) ORDER BY id
"""

_OUTLINED = 2048
"""Outlines of episodes that are read at once."""
_OUTLINED_OF_EPISODES = (
    *("id", "phase", "group_ordinal", "task", "sample", "outcome", "failure_side", "failure_reason"),
    *("failure_fingerprint", "mistake", "mistake_fingerprint", "setbacks"),
)
_OUTLINED_OF_CALLS = (
    *("id", "finish_reason", "prompt_tokens", "completion_tokens", "delivered", "overridden", "unmet"),
    *("control_tokens", "normalised"),
)

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
_KEY = re.compile(rf"({'|'.join(get_args(Phase))})-(\d+)-(\d+)-(\d+)")
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


class EpisodeReader:
    """Reads the episode store at ``path``, of any schema up to the present one, also while its run writes to it.

    Of a store of an older schema, which no run of this version writes, it sees what was there when it was first read.
    Methods may be called from any thread, and raise ``RunError`` where the store cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shadowed: sqlite3.Connection | None = None
        """The connection to a store of an older schema, which is kept for its temporary tables."""
        self._shadowing = threading.Lock()

    def rows(
        self,
        *,
        sort: SortKey = "committed",
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
        **filters: Unpack[EpisodeFilter],
    ) -> tuple[EpisodeRow, ...]:
        """At most ``limit`` of the episodes that match ``filters``, after the first ``offset``, ordered by ``sort``.

        Episodes that have no such value come last, and equal ones in the order of their commits.
        """
        with self._opened() as (connection, version):
            where, values = _where(connection, version, filters)
            column, direction = _ORDERS[sort], "DESC" if descending else "ASC"
            order = f"id {direction}" if column == "id" else f"{column} IS NULL, {column} {direction}, id"
            page = {"limit": -1 if limit is None else limit, "offset": offset}
            # Only the ids are sorted: a page far behind would carry all columns of the pages before it.
            ids = f"SELECT id FROM episodes WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset"
            found = connection.execute(f"{_ROWS} WHERE id IN ({ids}) ORDER BY {order}", values | page)
            return tuple(map(_row, found))

    def count(self, **filters: Unpack[EpisodeFilter]) -> int:
        """How many episodes match ``filters``."""
        with self._opened() as (connection, version):
            where, values = _where(connection, version, filters)
            (count,) = connection.execute(f"SELECT count(*) FROM episodes WHERE {where}", values).fetchone()
        return int(count)

    def counts(self, by: CountKey, **filters: Unpack[EpisodeFilter]) -> dict[str | int, int]:
        """How many of the episodes that match ``filters`` have each value of ``by``; those without one do not count."""
        column = _COUNTED[by]
        among = "tools JOIN episodes ON episode = id" if by == "tool" else "episodes"
        with self._opened() as (connection, version):
            where, values = _where(connection, version, filters)
            counted = f"SELECT {column}, count(*) FROM {among} WHERE {where} AND {column} NOT NULL"
            found = connection.execute(f"{counted} GROUP BY {column} ORDER BY {column}", values).fetchall()
            return {stored_text(value) if isinstance(value, bytes) else value: count for value, count in found}

    def groups(
        self, *, limit: int | None = None, offset: int = 0, **filters: Unpack[EpisodeFilter]
    ) -> tuple[GroupRow, ...]:
        """At most ``limit`` groups with an episode that matches ``filters``, each with all of its episodes.

        They come in the order in which their first matching episodes were committed.
        """
        with self._opened() as (connection, version):
            where, values = _where(connection, version, filters)
            page = {"limit": -1 if limit is None else limit, "offset": offset}
            grouped = f"SELECT phase, group_ordinal FROM episodes WHERE {where} GROUP BY phase, group_ordinal"
            found = connection.execute(f"{grouped} ORDER BY min(id) LIMIT :limit OFFSET :offset", values | page)
            members = f"{_ROWS} WHERE phase = ? AND group_ordinal = ? ORDER BY sample, id"
            return tuple(_group(list(map(_row, connection.execute(members, key)))) for key in found.fetchall())

    def episode(self, key: EpisodeKey | str) -> Episode:
        """The whole episode of ``key``, with its calls and its token tree.

        Raises ``RunError`` where there is none, and ``ConfigError`` for a text that is no key.
        """
        with self._opened() as (connection, version):
            (episode,) = _episodes(connection, version, [self._id(connection, key)])
        return episode

    def _id(self, connection: sqlite3.Connection, key: EpisodeKey | str) -> int:
        """The id of the newest episode of ``key``."""
        key = parse_key(key) if isinstance(key, str) else key
        where = "phase = ? AND group_ordinal = ? AND task = ? AND sample = ? ORDER BY id DESC LIMIT 1"
        found = connection.execute(
            f"SELECT id FROM episodes WHERE {where}", (key.phase, key.group, key.task, key.sample)
        ).fetchone()
        if found is None:
            raise RunError(f"the store {self.path} has no episode {key}", fix="list them with Run.episodes")
        return int(found[0])

    def row(self, key: EpisodeKey | str) -> EpisodeRow:
        """The episode of ``key`` as lists show it. Raises as ``episode`` does."""
        with self._opened() as (connection, _):
            found = connection.execute(f"{_ROWS} WHERE id = ?", (self._id(connection, key),))
            return _row(found.fetchone())

    def trained(self, key: EpisodeKey | str) -> TrainedTokens | None:
        """What the optimiser step that the episode's group was in made of its sampled tokens.

        ``None`` before that step has ended, for an episode of no step, and in a store of a schema before 9. Raises as
        ``episode`` does.
        """
        with self._opened() as (connection, _):
            id = self._id(connection, key)
            columns = ", ".join(TRAINED_COLUMNS[1:])
            found = connection.execute(f"SELECT {columns} FROM trained WHERE episode = ?", (id,)).fetchone()
            return None if found is None else trained_tokens(found)

    def load(self, **filters: Unpack[EpisodeFilter]) -> Iterator[Episode]:
        """Whole episodes that match ``filters``, in the order of their commits; memory holds a page of them at most."""
        after = 0
        while True:
            with self._opened() as (connection, version):
                where, values = _where(connection, version, filters)
                page = f"SELECT id FROM episodes WHERE id > :after AND {where} ORDER BY id LIMIT {_PAGE}"
                ids = [id for (id,) in connection.execute(page, values | {"after": after})]
                episodes = _episodes(connection, version, ids)
            yield from episodes
            if len(ids) < _PAGE:
                return
            after = ids[-1]

    def memberships(self, after: int = 0) -> tuple[Membership, ...]:
        """Which groups each step took that was about to begin, in order, from the step after ``after`` on.

        A store of a schema before 8 has none.
        """
        with self._opened() as (connection, version):
            if version < FIRST_WITH_STEPS:
                return ()
            found = connection.execute(
                f"SELECT {', '.join(STEP_COLUMNS)} FROM steps WHERE step > ? ORDER BY step", (after,)
            )
            return tuple(Membership(step, *(tuple(json.loads(each)) for each in groups)) for step, *groups in found)

    def untaken(self) -> Iterator[Episode]:
        """The training episodes whose groups no step has trained or left out, in the order of their commits.

        Those of groups that were dropped, and are to be rolled out again, are among them. Memory holds a page of them
        at most. Raises ``RunError`` where a store of a schema before 8 cannot tell.
        """
        with self._opened() as (connection, version):
            if version < FIRST_WITH_STEPS:
                raise RunError(f"{self.path} does not tell which groups a step took: an older version has written it")
            ids = [id for (id,) in connection.execute(_UNTAKEN)]
        for start in range(0, len(ids), _PAGE):
            with self._opened() as (connection, version):
                episodes = _episodes(connection, version, ids[start : start + _PAGE])
            yield from episodes

    def outlines(self) -> Iterator[Episode]:
        """All episodes in the order of their commits, without tasks, answers, rewards, requests, messages and tokens.

        What is left says how each ended and what went wrong in it. Memory holds a page of them at most.
        """
        after = 0
        while True:
            with self._opened() as (connection, version):
                wanted = f"SELECT {', '.join(_OUTLINED_OF_EPISODES)} FROM episodes WHERE id > ? ORDER BY id"
                found = connection.execute(f"{wanted} LIMIT {_OUTLINED}", (after,)).fetchall()
                calls: dict[int, list[Call]] = {row[0]: [] for row in found}
                if found and version >= FIRST_WITH_TABLES:
                    wanted = f"SELECT episode, {', '.join(_OUTLINED_OF_CALLS)} FROM calls"
                    among = "WHERE episode BETWEEN ? AND ? ORDER BY episode, ordinal"
                    ends = (found[0][0], found[-1][0])
                    for id, *call in connection.execute(f"{wanted} {among}", ends):
                        calls[id].append(_outlined_call(call))
            yield from (_outlined(row, tuple(calls[row[0]])) for row in found)
            if len(found) < _OUTLINED:
                return
            after = found[-1][0]

    @contextmanager
    def _opened(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        try:
            with self._shadowing:
                if self._shadowed is not None:
                    yield self._shadowed, schema_version(self._shadowed, self.path)
                    return
                connection, version = open_for_reading(self.path)
                if version < SCHEMA_VERSION:
                    shadow(connection, version)
                if version < FIRST_WITH_TABLES:
                    self._shadowed = connection
                    yield connection, version
                    return
            with closing(connection):
                yield connection, version
        except sqlite3.Error as error:
            raise database_error(self.path, error, "read") from error


def _where(
    connection: sqlite3.Connection, version: int, filters: EpisodeFilter
) -> tuple[str, dict[str, str | bytes | int | float]]:
    """An SQL condition for ``filters``, and the values of its parameters."""
    wanted = cast(dict[str, Any], dict(filters))
    if unknown := wanted.keys() - EpisodeFilter.__annotations__.keys():
        raise TypeError(f"episodes cannot be filtered by {', '.join(sorted(unknown))}")
    values = {name: value for name, value in wanted.items() if value is not None}
    conditions = [_CONDITIONS[name] for name in values if name != "text"]
    if phrases := _phrases(values.pop("text", "")):
        condition, parameters = _search(connection, version, phrases)
        conditions.append(condition)
        values |= parameters
    if "tool" in values:
        values["tool"] = storable(values["tool"])
    return " AND ".join(conditions) or "1", values


def _phrases(text: str) -> list[str]:
    """The words, and the quoted phrases, of a search, each with a ``*`` at its end where it may go on."""
    found = [(" ".join(_words(quoted or plain)), plain.endswith("*")) for quoted, plain in _QUERY.findall(text)]
    return [phrase + "*" * is_prefix for phrase, is_prefix in found if phrase]


def _words(text: str) -> list[str]:
    """The words of ``text`` in lower case, as SQLite's tokeniser ``unicode61`` finds them."""
    return _WORD.findall(text.lower())


def _search(connection: sqlite3.Connection, version: int, phrases: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The episodes whose messages hold all of ``phrases``: by the index, and one by one what is not indexed."""

    def holds(text: bytes | None) -> bool:
        words = f" {' '.join(_words((text or b'').decode(errors='replace')))} "
        return all(f" {each[:-1]}" in words if each.endswith("*") else f" {each} " in words for each in phrases)

    connection.create_function("holds", 1, holds, deterministic=True)
    if version < FIRST_WITH_TABLES:
        connection.create_function("call_texts", 1, call_texts, deterministic=True)
        return "id IN (SELECT id FROM main.episodes WHERE holds(call_texts(calls)))", {}
    texts = f"SELECT episode, group_concat(text, ' {BETWEEN_TEXTS} ') AS texts FROM ({MESSAGE_TEXTS}) GROUP BY episode"
    scan = f"SELECT episode FROM ({texts}) WHERE holds(CAST(texts AS BLOB))"
    if not has_search(connection):
        return f"id IN ({scan})", {"first": 0}
    match = " ".join(f'"{phrase.rstrip("*")}"{"*" * phrase.endswith("*")}' for phrase in phrases)
    parameters = {"match": match, "first": unindexed_from(connection)}
    return f"(id IN (SELECT rowid FROM search WHERE search MATCH :match) OR id IN ({scan}))", parameters


def _row(values: Sequence[Any]) -> EpisodeRow:
    value = dict(zip(_ROW_COLUMNS, values, strict=True))
    key = EpisodeKey(*(value.pop(name) for name in ("phase", "group_ordinal", "task", "sample")))
    if value["failure_reason"] is not None:
        value["failure_reason"] = stored_text(value["failure_reason"])
    return EpisodeRow(key=key, **value)


def _group(members: Sequence[EpisodeRow]) -> GroupRow:
    first = members[0].key
    return GroupRow(first.phase, first.group, first.task, tuple(members))


def _episodes(connection: sqlite3.Connection, version: int, ids: Sequence[int]) -> list[Episode]:
    """The whole episodes of ``ids``, in the same order."""
    among = f"IN ({', '.join(map(str, ids))})"
    columns = ", ".join("tasks.data" if name == "data" else f"e.{name}" for name in EPISODE_COLUMNS)
    found = connection.execute(
        f"SELECT {columns} FROM episodes AS e JOIN tasks ON digest = e.data WHERE e.id {among} ORDER BY e.id"
    ).fetchall()
    calls: dict[int, list[Sequence[Any]]] = {id: [] for id in ids}
    trees: dict[int, Sequence[Any]] = {}
    if version < FIRST_WITH_TABLES:
        for id, old_calls, old_tree in connection.execute(
            f"SELECT id, calls, tree FROM main.episodes WHERE id {among}"
        ):
            calls[id] = list(call_rows(old_calls))
            trees[id] = tree_row(old_tree)
    else:
        names = f"SELECT {', '.join(CALL_COLUMNS)} FROM calls"
        for id, *call in connection.execute(f"{names} WHERE episode {among} ORDER BY episode, ordinal"):
            calls[id].append(call)
        names = f"SELECT {', '.join(TREE_COLUMNS)} FROM trees"
        trees = {id: tree for id, *tree in connection.execute(f"{names} WHERE episode {among}")}
    return [_episode(values, calls[values[0]], trees[values[0]]) for values in found]


def _episode(values: Sequence[Any], calls: Iterable[Sequence[Any]], tree: Sequence[Any]) -> Episode:
    value = dict(zip(EPISODE_COLUMNS, values, strict=True))
    return Episode(
        key=EpisodeKey(cast(Phase, value["phase"]), value["group_ordinal"], value["task"], value["sample"]),
        data=json.loads(value["data"]),
        outcome=cast(Outcome, value["outcome"]),
        reward=value["reward"],
        call_rewards=json.loads(value["call_rewards"]),
        reward_parts=json.loads(value["reward_parts"]),
        calls=tuple(_calls(calls)),
        tree=_tree(*tree),
        answer=json.loads(value["answer"]),
        failure=_failure(value),
        mistake=value["mistake"],
        mistake_fingerprint=stored_text(value["mistake_fingerprint"]),
        setbacks=tuple(Failure(*each) for each in json.loads(value["setbacks"])),
        seconds=value["seconds"],
        attempts=value["attempts"],
        version=value["version"],
        trained_step=value["trained_step"],
        started=value["started"],
    )


def _failure(value: Mapping[str, Any]) -> Failure | None:
    if value["failure_side"] is None:
        return None
    reason, fingerprint = stored_text(value["failure_reason"]), stored_text(value["failure_fingerprint"])
    return Failure(value["failure_side"], reason, fingerprint)


def _outlined(row: Sequence[Any], calls: tuple[Call, ...]) -> Episode:
    value = dict(zip(_OUTLINED_OF_EPISODES, row, strict=True))
    return Episode(
        key=EpisodeKey(cast(Phase, value["phase"]), value["group_ordinal"], value["task"], value["sample"]),
        data={},
        outcome=cast(Outcome, value["outcome"]),
        reward=None,
        calls=calls,
        failure=_failure(value),
        mistake=value["mistake"],
        mistake_fingerprint=stored_text(value["mistake_fingerprint"]),
        setbacks=tuple(Failure(*each) for each in json.loads(value["setbacks"])),
    )


def _outlined_call(row: Sequence[Any]) -> Call:
    value = dict(zip(_OUTLINED_OF_CALLS, row, strict=True))
    return Call(
        id=stored_text(value["id"]),
        parent=None,
        request={},
        message={},
        finish_reason=stored_text(value["finish_reason"]),
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
        **_told(value),
    )


def _told(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a call's columns tell of what was changed in it or went wrong."""
    return {
        "overridden": tuple(json.loads(value["overridden"])),
        "unmet": tuple(json.loads(value["unmet"])),
        "control_tokens": tuple(json.loads(value["control_tokens"])),
        "normalised": tuple(Replacement(**each) for each in json.loads(value["normalised"])),
        "delivered": bool(value["delivered"]),
    }


def _calls(rows: Iterable[Sequence[Any]]) -> Iterator[Call]:
    requests: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        value = dict(zip(CALL_COLUMNS[1:], row, strict=True))
        parent = None if value["parent"] is None else stored_text(value["parent"])
        request = json.loads(value["request"])
        if value["repeated"] is not None:
            request = _joined(requests.get(parent or "", {}), request, json.loads(value["repeated"]))
        call = Call(
            id=stored_text(value["id"]),
            parent=parent,
            request=request,
            message=json.loads(value["message"]),
            finish_reason=stored_text(value["finish_reason"]),
            prompt_tokens=value["prompt_tokens"],
            completion_tokens=value["completion_tokens"],
            fork_reason=None if value["fork_reason"] is None else stored_text(value["fork_reason"]),
            seconds=value["seconds"],
            started=value["started"],
            waited=value["waited"],
            **_told(value),
        )
        requests[call.id] = request
        yield call


def _joined(parent: Mapping[str, Any], added: Mapping[str, Any], repeated: Mapping[str, Any]) -> dict[str, Any]:
    request = {name: parent[name] for name in repeated["fields"]} | dict(added)
    for name, equal in repeated["items"].items():
        rows = [(0, equal)] if isinstance(equal, int) else equal
        items, own = list[Any](), iter(added[name])
        for start, length in rows:
            items += islice(own, start - len(items))
            items += parent[name][start : start + length]
        request[name] = [*items, *own]
    return request


def _tree(spans: str, ids: bytes, logprobs: bytes, versions: bytes, alternatives: str | None = None) -> TokenTree:
    tokens, sampled_versions = numbers("i", ids), numbers("i", versions)
    # As many log-probabilities as versions: their size says which floats they are.
    drawn = numbers("f" if len(logprobs) == len(versions) else "d", logprobs)
    reported = {} if alternatives is None else json.loads(alternatives)
    rows, token, draw = list[dict[str, Any]](), 0, 0
    shape = json.loads(spans)
    for parent, fork, count, *sample in shape:
        row: dict[str, Any] = {"parent": parent, "fork": fork, "ids": tokens[token : token + count]}
        token += count
        if sample:
            call, temperature, constrained, *grammar = sample
            row["sampled"] = {"call": call, "temperature": temperature, "constrained": constrained} | {
                "logprobs": drawn[draw : draw + count],
                "versions": sampled_versions[draw : draw + count],
            }
            if grammar:  # It is spelled out where it comes first; after that stands the index of that span.
                kind, text, stop_ids = shape[grammar[0]][6] if isinstance(grammar[0], int) else grammar[0]
                row["sampled"] |= {"grammar": {"kind": kind, "text": text}, "stop_ids": stop_ids}
            if str(len(rows)) in reported:
                row["sampled"] |= {"alternatives": reported[str(len(rows))]}
            draw += count
        rows.append(row)
    return TokenTree.from_json(rows)
