"""Reading an episode store: lists by filter and order, pages, counts, searches, and whole episodes.

Every method opens the file for itself, read-only, so that a run that writes to it is never held up.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Unpack

from agentrl.errors import RunError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import (
    CountKey,
    EpisodeFilter,
    EpisodeRow,
    GroupRow,
    Membership,
    SortKey,
    TrainedTokens,
)
from agentrl.runs.decoding import (
    OUTLINED_OF_CALLS,
    OUTLINED_OF_EPISODES,
    ROWS,
    outlined,
    outlined_call,
    read_episodes,
    to_group,
    to_row,
)
from agentrl.runs.migrations import (
    FIRST_WITH_STEPS,
    FIRST_WITH_TABLES,
    shadow,
)
from agentrl.runs.queries import condition, counted_by, ordered, parse_key, storable_int
from agentrl.runs.schema import (
    SCHEMA_VERSION,
    STEP_COLUMNS,
    TRAINED_COLUMNS,
    closed_on_error,
    damaged,
    database_error,
    open_for_reading,
    schema_version,
    stored_text,
)
from agentrl.runs.trained import trained_tokens

__all__ = ["EpisodeReader"]

_PAGE = 128
"""Whole episodes that are read at once; no transaction is open while the caller looks at them."""

_UNTAKEN = """
SELECT id FROM episodes WHERE phase = 'train' AND group_ordinal NOT IN (
    SELECT value FROM steps, json_each(trained) UNION ALL SELECT value FROM steps, json_each(left_out)
) ORDER BY id
"""

_OUTLINED = 2048
"""Outlines of episodes that are read at once."""


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
            where, values = condition(connection, version, filters)
            order = ordered(sort, descending)
            page = {"limit": -1 if limit is None else limit, "offset": offset}
            # Only the ids are sorted: a page far behind would carry all columns of the pages before it.
            ids = f"SELECT id FROM episodes WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset"
            found = connection.execute(f"{ROWS} WHERE id IN ({ids}) ORDER BY {order}", values | page)
            with self._decoding():
                return tuple(map(to_row, found))

    def page(
        self, sort: SortKey, descending: bool, limit: int, offset: int, **filters: Unpack[EpisodeFilter]
    ) -> tuple[tuple[EpisodeRow, ...], int]:
        """What ``rows`` gives, and how many episodes match in all; a search looks into the index once for both."""
        if "text" not in filters:  # A count over an index is cheaper than all ids in order.
            rows = self.rows(sort=sort, descending=descending, limit=limit, offset=offset, **filters)
            is_whole = len(rows) < limit and (rows or not offset)
            return rows, offset + len(rows) if is_whole else self.count(**filters)
        with self._opened() as (connection, version):
            where, values = condition(connection, version, filters)
            order = ordered(sort, descending)
            ids = (
                f"SELECT id, count(*) OVER () FROM episodes WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset"
            )
            found = connection.execute(ids, values | {"limit": limit, "offset": offset}).fetchall()
            chosen = json.dumps([id for id, _ in found])
            wanted = f"{ROWS} WHERE id IN (SELECT value FROM json_each(?)) ORDER BY {order}"
            with self._decoding():
                rows = tuple(map(to_row, connection.execute(wanted, (chosen,))))
        return rows, found[0][1] if found else self.count(**filters) if offset else 0

    def count(self, **filters: Unpack[EpisodeFilter]) -> int:
        """How many episodes match ``filters``."""
        with self._opened() as (connection, version):
            where, values = condition(connection, version, filters)
            (count,) = connection.execute(f"SELECT count(*) FROM episodes WHERE {where}", values).fetchone()
        return int(count)

    def counts(self, by: CountKey, **filters: Unpack[EpisodeFilter]) -> dict[str | int, int]:
        """How many of the episodes that match ``filters`` have each value of ``by``; those without one do not count."""
        column = counted_by(by)
        with self._opened() as (connection, version):
            where, values = condition(connection, version, filters)
            among = "episodes"
            if by == "tool":
                among = "tools" if where == "1" else "tools JOIN episodes ON episode = id"
            counted = f"SELECT {column}, count(*) FROM {among} WHERE {where} AND {column} NOT NULL"
            found = connection.execute(f"{counted} GROUP BY {column} ORDER BY {column}", values).fetchall()
            with self._decoding():
                return {stored_text(value) if isinstance(value, bytes) else value: count for value, count in found}

    def groups(
        self, *, limit: int | None = None, offset: int = 0, **filters: Unpack[EpisodeFilter]
    ) -> tuple[GroupRow, ...]:
        """At most ``limit`` groups with an episode that matches ``filters``, each with all of its episodes.

        They come in the order in which their first matching episodes were committed.
        """
        with self._opened() as (connection, version):
            where, values = condition(connection, version, filters)
            page = {"limit": -1 if limit is None else limit, "offset": offset}
            grouped = f"SELECT phase, group_ordinal FROM episodes WHERE {where} GROUP BY phase, group_ordinal"
            found = connection.execute(f"{grouped} ORDER BY min(id) LIMIT :limit OFFSET :offset", values | page)
            members = f"{ROWS} WHERE phase = ? AND group_ordinal = ? ORDER BY sample, id"
            with self._decoding():
                return tuple(to_group(list(map(to_row, connection.execute(members, key)))) for key in found.fetchall())

    def episode(self, key: EpisodeKey | str) -> Episode:
        """The whole episode of ``key``, with its calls and its token tree.

        Raises ``RunError`` where there is none, and ``ConfigError`` for a text that is no key.
        """
        with self._opened() as (connection, version):
            id = self._id(connection, key)
            with self._decoding():
                (episode,) = read_episodes(connection, version, [id])
        return episode

    def _id(self, connection: sqlite3.Connection, key: EpisodeKey | str) -> int:
        """The id of the newest episode of ``key``."""
        key = parse_key(key) if isinstance(key, str) else key
        where = "phase = ? AND group_ordinal = ? AND task = ? AND sample = ? ORDER BY id DESC LIMIT 1"
        found = connection.execute(
            f"SELECT id FROM episodes WHERE {where}", (key.phase, *map(storable_int, (key.group, key.task, key.sample)))
        ).fetchone()
        if found is None:
            raise RunError(f"the store {self.path} has no episode {key}", fix="list them with Run.episodes")
        return int(found[0])

    def row(self, key: EpisodeKey | str) -> EpisodeRow:
        """The episode of ``key`` as lists show it. Raises as ``episode`` does."""
        with self._opened() as (connection, _):
            found = connection.execute(f"{ROWS} WHERE id = ?", (self._id(connection, key),))
            with self._decoding():
                return to_row(found.fetchone())

    def trained(self, key: EpisodeKey | str) -> TrainedTokens | None:
        """What the optimiser step that the episode's group was in made of its sampled tokens.

        ``None`` before that step has ended, for an episode of no step, and in a store of a schema before 9. Raises as
        ``episode`` does.
        """
        with self._opened() as (connection, _):
            id = self._id(connection, key)
            columns = ", ".join(TRAINED_COLUMNS[1:])
            found = connection.execute(f"SELECT {columns} FROM trained WHERE episode = ?", (id,)).fetchone()
            with self._decoding():
                return None if found is None else trained_tokens(found)

    def load(self, **filters: Unpack[EpisodeFilter]) -> Iterator[Episode]:
        """Whole episodes that match ``filters``, in the order of their commits; memory holds a page of them at most."""
        for page in self._pages(**filters):
            with self._opened() as (connection, version), self._decoding():
                episodes = read_episodes(connection, version, [id for id, _ in page])
            yield from episodes

    def whole(self, **filters: Unpack[EpisodeFilter]) -> Iterator[tuple[EpisodeRow, Episode, TrainedTokens | None]]:
        """The same, each with its row in lists, and with what its step made of its tokens."""
        for page in self._pages(**filters):
            ids = [id for id, _ in page]
            with self._opened() as (connection, version), self._decoding():
                episodes = read_episodes(connection, version, ids)
                wanted = (
                    f"SELECT {', '.join(TRAINED_COLUMNS)} FROM trained WHERE episode IN ({', '.join(map(str, ids))})"
                )
                trained = {id: trained_tokens(found) for id, *found in connection.execute(wanted)}
            yield from ((row, episode, trained.get(id)) for (id, row), episode in zip(page, episodes, strict=True))

    def _pages(self, **filters: Unpack[EpisodeFilter]) -> Iterator[list[tuple[int, EpisodeRow]]]:
        after = 0
        while True:
            with self._opened() as (connection, version):
                where, values = condition(connection, version, filters)
                page = f"{ROWS} WHERE id > :after AND {where} ORDER BY id LIMIT {_PAGE}"
                found = connection.execute(page, values | {"after": after})
                with self._decoding():
                    rows = [(row.id, row) for row in map(to_row, found)]
            yield rows
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

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
            with self._decoding():
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
            with self._opened() as (connection, version), self._decoding():
                episodes = read_episodes(connection, version, ids[start : start + _PAGE])
            yield from episodes

    def outlines(self, after: int = 0) -> Iterator[Episode]:
        """All episodes in the order of their commits, without tasks, answers, requests, messages and tokens.

        What is left says how each ended and what went wrong in it. Memory holds a page of them at most. Those whose
        ``EpisodeRow.id`` is not above ``after`` are left out.
        """
        while True:
            with self._opened() as (connection, version), self._decoding():
                wanted = f"SELECT {', '.join(OUTLINED_OF_EPISODES)} FROM episodes WHERE id > ? ORDER BY id"
                found = connection.execute(f"{wanted} LIMIT {_OUTLINED}", (after,)).fetchall()
                calls: dict[int, list[Call]] = {row[0]: [] for row in found}
                if found and version >= FIRST_WITH_TABLES:
                    wanted = f"SELECT episode, {', '.join(OUTLINED_OF_CALLS)} FROM calls"
                    among = "WHERE episode BETWEEN ? AND ? ORDER BY episode, ordinal"
                    ends = (found[0][0], found[-1][0])
                    for id, *call in connection.execute(f"{wanted} {among}", ends):
                        calls[id].append(outlined_call(call))
                outlines = [outlined(row, tuple(calls[row[0]])) for row in found]
            yield from outlines
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
                    with closed_on_error(connection):
                        shadow(connection, version)
                if version < FIRST_WITH_TABLES:
                    self._shadowed = connection
                    yield connection, version
                    return
            with closing(connection):
                yield connection, version
        except sqlite3.Error as error:
            raise database_error(self.path, error, "read") from error

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Within it, a value that no writer has written is the ``RunError`` of a damaged store."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise damaged(self.path, f"a value in it cannot be read ({type(error).__name__}: {error})") from error
