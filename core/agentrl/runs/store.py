"""The writer of the episode store: every finished episode is on disk before it may be trained.

One thread writes. It commits what has gathered while it was busy in one transaction, so that everybody who waits
shares the wait for the disk; readers, in this process or another, never block it.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from agentrl.errors import RunError
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import Membership, TrainedEpisode
from agentrl.runs.encoding import DATA, EpisodeRows, json_text, to_rows
from agentrl.runs.folder import FolderLock
from agentrl.runs.schema import (
    CALL_COLUMNS,
    EPISODE_COLUMNS,
    STEP_COLUMNS,
    TOOL_COLUMNS,
    TRAINED_COLUMNS,
    TREE_COLUMNS,
    JournalMode,
    close_for_writing,
    database_error,
    has_search,
    index_messages,
    open_for_writing,
    transaction,
    unindexed_from,
)
from agentrl.runs.trained import TrainedRow, row_of

__all__ = ["EpisodeStore"]

PATIENCE_S = 600.0
"""Seconds that the disk may take for what waits to be written; commits of the slowest take a fraction of one."""
_IDLE_S = 0.1
"""Seconds without a commit after which the messages of the newest episodes are indexed for search."""
_MOST_UNINDEXED = 512
"""Episodes after which they are indexed without waiting for an idle moment; a batch costs half of single entries."""
_MOST_TRAINED = 128
"""Trained episodes of one statement, which looks through all of them for each."""
_MOST_VALUES = 32_766
"""Values of one statement in SQLite's default build; older builds take fewer."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """What one caller wants written, and the future that is done once it is on disk."""

    done: Future[None] | asyncio.Future[None]
    rows: Sequence[EpisodeRows] = ()
    begins: Membership | None = None
    """The step that is about to begin, with its groups."""
    keys: Sequence[EpisodeKey] | None = None
    """The episodes that it trains; ``None`` for all of its groups."""
    trained: Sequence[TrainedEpisode | TrainedRow] = ()
    """What a step made of episodes."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop whose thread alone may set ``done``; ``None`` where any thread may."""
        return self.done.get_loop() if isinstance(self.done, asyncio.Future) else None

    def settle(self, error: Exception | None) -> None:
        """Set the result or ``error``, unless nobody waits any more."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class EpisodeStore:
    """The one writer of a run's episodes. ``commit`` may be called from any thread and any event loop.

    A store of an older schema is rewritten in the present one when it is opened. Raises ``RunError`` where the file
    cannot be written, is not an episode store, or another process has its folder open for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path.parent)
        try:
            self._connection, self._mode = open_for_writing(path)
            (self._last_id,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM episodes").fetchone()
            self._searches = has_search(self._connection)
            self._unindexed = self._last_id + 1 - unindexed_from(self._connection) if self._searches else 0
        except BaseException:
            self._lock.release()
            raise
        most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        self._most_values = min(most, _MOST_VALUES)
        self._queue: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="episode-store", daemon=True)
        self._thread.start()

    @property
    def journal_mode(self) -> JournalMode:
        """How SQLite keeps a commit whole: with a write-ahead log, or with a rollback journal."""
        return self._mode

    @property
    def notes(self) -> list[str]:
        """What the user should know about the file system, a sentence each; empty on an ordinary disk."""
        notes = []
        if self._mode == "delete":
            notes.append(
                f"the file system of {self.path.parent} cannot do a write-ahead log: "
                "episodes are stored with a rollback journal, which is slower and makes readers wait"
            )
        if not self._lock.held:
            notes.append(f"{self.path.parent} cannot be locked: see to it that no second run writes there")
        return notes

    async def commit(self, episodes: Sequence[Episode]) -> None:
        """Store ``episodes``, all or none, and return once they are on disk.

        Cancelling the wait does not undo the commit. Raises ``RunError`` where it fails, or where the disk does not
        answer for ten minutes.
        """
        done = asyncio.get_running_loop().create_future()
        self._enqueue(_Commit(done, [_encoded(episode) for episode in episodes]))
        await self._written(done)

    async def written(self, submitted: Future[None]) -> None:
        """Wait for what ``begin_step`` returned. Raises as ``commit`` does."""
        await self._written(asyncio.wrap_future(submitted))

    def wait(self, submitted: Future[None]) -> None:
        """As ``written``, for code without an event loop."""
        try:
            submitted.result(PATIENCE_S)
        except TimeoutError:
            if submitted.done():
                raise
            raise self._unanswered() from None

    async def _written(self, done: asyncio.Future[None]) -> None:
        try:
            finished, _ = await asyncio.wait({done}, timeout=PATIENCE_S)
        except asyncio.CancelledError:
            done.cancel()
            raise
        if not finished:
            done.cancel()
            raise self._unanswered()
        done.result()

    def _unanswered(self) -> RunError:
        return RunError(
            f"waited {PATIENCE_S:g} s for the episode store {self.path} to be written",
            fix="see why its disk does not answer, or set run.dir to another",
        )

    def submit(self, episodes: Sequence[Episode]) -> Future[None]:
        """Like ``commit``, for code without an event loop: the future is done when the episodes are on disk.

        Raises ``RunError`` at once for an episode that cannot be stored.
        """
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        self._enqueue(_Commit(done, [_encoded(episode) for episode in episodes]))
        return done

    def begin_step(self, membership: Membership, keys: Iterable[EpisodeKey] | None = None) -> Future[None]:
        """Record which groups a step takes, and set ``trained_step`` of the episodes that it trains.

        Those are ``keys``, by default all of the groups that it trains: a group that was dropped and has come again has
        episodes that nothing trains.
        The step may begin when the future is done: then it is on disk, written together with the commits that waited
        at that moment. The future's exception is the ``RunError`` where that fails, or where the step has begun before.
        """
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        self._enqueue(_Commit(done, begins=membership, keys=None if keys is None else tuple(keys)))
        return done

    def record_training(self, step: int, rows: Iterable[TrainedEpisode | TrainedRow]) -> Future[None]:
        """Record what the optimiser step ``step`` made of the episodes of its groups, token by token.

        It is committed with whatever waits at that moment; the future is done when it is on disk. What was recorded of
        an episode before is replaced, since a resumed run repeats steps. The future's exception is the ``RunError``
        where that fails, or where an episode is not in the store or has another number of sampled tokens.

        Raises ``ValueError`` for tokens of another step.
        """
        made = tuple(rows)
        for each in made:
            told = each.tokens.step if isinstance(each, TrainedEpisode) else each.step
            if told != step:
                raise ValueError(f"episode {each.key} has tokens of step {told}, not of {step}")
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        self._enqueue(_Commit(done, trained=made))
        return done

    def _enqueue(self, commit: _Commit) -> None:
        with self._closing:
            if self._closed:
                raise RunError(f"the episode store {self.path} is closed")
            self._queue.put(commit)

    def close(self) -> None:
        """Commit what was submitted and close the file. Safe to call twice.

        Raises ``RunError`` where the disk does not answer for ten minutes.
        """
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            raise self._unanswered()

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RunError:
            if error is None:
                raise

    def _serve(self) -> None:
        try:
            last = False
            while not last:
                gathered, last = self._gather()
                if gathered:
                    self._write(gathered)
                if self._unindexed and (last or not gathered or self._unindexed >= _MOST_UNINDEXED):
                    self._index()
        finally:
            close_for_writing(self._connection)
            self._lock.release()

    def _gather(self) -> tuple[list[_Commit], bool]:
        """The commits that wait, and whether they are the last; none where an idle moment can be used for the index."""
        gathered: list[_Commit] = []
        try:
            commit = self._queue.get(timeout=_IDLE_S if self._unindexed else None)
            while commit is not None:
                gathered.append(commit)
                commit = self._queue.get_nowait()
        except queue.Empty:
            return gathered, False
        return gathered, True

    def _write(self, commits: Sequence[_Commit]) -> None:
        failure: Exception | None = None
        try:
            with transaction(self._connection):
                self._insert([rows for commit in commits for rows in commit.rows])
                for commit in commits:
                    if commit.begins is not None:
                        self._begin(commit.begins, commit.keys)
                    if commit.trained:
                        self._record_training(commit.trained)
        except Exception as error:  # whatever it is, those who wait have to learn of it
            failure = database_error(self.path, error, "write") if isinstance(error, sqlite3.Error) else error
        else:
            written = sum(len(commit.rows) for commit in commits)
            self._last_id += written
            self._unindexed += written if self._searches else 0
        _settle_all(commits, failure)

    def _insert(self, episodes: Sequence[EpisodeRows]) -> None:
        """Many rows are one statement: the interpreter's lock is given up and taken again with every statement,
        and beside a busy event loop each of those waits."""
        digests = [hashlib.sha256(rows.data.encode()).digest() for rows in episodes]
        tasks = {digest: (digest, rows.data) for digest, rows in zip(digests, episodes, strict=True)}
        numbered = list(enumerate(episodes, start=self._last_id + 1))
        self._insert_into("tasks", ("digest", "data"), list(tasks.values()), "OR IGNORE")
        self._insert_into(
            "episodes",
            EPISODE_COLUMNS,
            [
                (id, *rows.episode[:DATA], digest, *rows.episode[DATA:])
                for (id, rows), digest in zip(numbered, digests, strict=True)
            ],
        )
        self._insert_into("calls", CALL_COLUMNS, [(id, *call) for id, rows in numbered for call in rows.calls])
        self._insert_into("trees", TREE_COLUMNS, [(id, *rows.tree) for id, rows in numbered])
        self._insert_into("tools", TOOL_COLUMNS, [(tool, id) for id, rows in numbered for tool in rows.tools])

    def _insert_into(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], otherwise: str = ""
    ) -> None:
        """``otherwise`` is what becomes of a row that is there: ``OR IGNORE``, ``OR REPLACE`` or an error."""
        values, at_once = f"({', '.join('?' * len(columns))})", self._most_values // len(columns)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            self._connection.execute(
                f"INSERT {otherwise} INTO {table} ({', '.join(columns)}) VALUES {', '.join([values] * len(some))}",
                [value for row in some for value in row],
            )

    def _begin(self, membership: Membership, keys: Sequence[EpisodeKey] | None) -> None:
        groups = (membership.trained, membership.left_out, membership.stale)
        self._insert_into("steps", STEP_COLUMNS, [(membership.step, *(json_text(list(each)) for each in groups))])
        if keys is None:
            self._mark("group_ordinal", "(?)", [(ordinal,) for ordinal in membership.trained], membership.step)
        else:
            self._mark("(group_ordinal, sample)", "(?, ?)", [(key.group, key.sample) for key in keys], membership.step)

    def _mark(self, columns: str, places: str, rows: Sequence[tuple[int, ...]], step: int) -> None:
        at_once = (self._most_values - 1) // places.count("?")
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            chosen = f"{columns} IN (VALUES {', '.join([places] * len(some))})"
            self._connection.execute(
                f"UPDATE episodes SET trained_step = ? WHERE phase = 'train' AND {chosen}",
                [step, *(value for row in some for value in row)],
            )

    def _record_training(self, episodes: Sequence[TrainedEpisode | TrainedRow]) -> None:
        for start in range(0, len(episodes), _MOST_TRAINED):
            chosen = episodes[start : start + _MOST_TRAINED]
            some = [row_of(each) if isinstance(each, TrainedEpisode) else each for each in chosen]
            found = self._connection.execute(
                f"WITH wanted (phase, ordinal, task, sample) AS (VALUES {', '.join(['(?, ?, ?, ?)'] * len(some))}) "
                "SELECT wanted.ordinal, wanted.task, wanted.sample, wanted.phase, max(id), sampled_tokens "
                "FROM wanted JOIN episodes AS e ON e.phase = wanted.phase AND group_ordinal = ordinal "
                "AND e.task = wanted.task AND e.sample = wanted.sample GROUP BY 1, 2, 3, 4",
                [value for each in some for value in (each.key.phase, each.key.group, each.key.task, each.key.sample)],
            )
            known = {
                EpisodeKey(phase, ordinal, task, sample): (id, sampled)
                for ordinal, task, sample, phase, id, sampled in found.fetchall()
            }
            for each in some:
                id, sampled = known.get(each.key, (None, 0))
                if id is None:
                    raise RunError(f"step {each.step} trained episode {each.key}, which is not in {self.path}")
                if each.tokens != sampled:
                    told = f"{each.tokens:,} tokens of episode {each.key}, which has {sampled:,}"
                    raise RunError(f"step {each.step} tells of {told}")
            rows = [(known[each.key][0], *each.columns) for each in some]
            self._insert_into("trained", TRAINED_COLUMNS, rows, "OR REPLACE")
            marks = [(known[each.key][0], each.fate, each.advantage) for each in some]
            self._connection.execute(
                f"WITH marks (id, fate, advantage) AS (VALUES {', '.join(['(?, ?, ?)'] * len(marks))}) "
                "UPDATE episodes SET (fate, advantage) = "
                "(SELECT fate, advantage FROM marks WHERE marks.id = episodes.id) WHERE id IN (SELECT id FROM marks)",
                [value for mark in marks for value in mark],
            )

    def _index(self) -> None:
        try:
            index_messages(self._connection)
        except sqlite3.Error:
            # A full disk, which the next commit reports. Searches look through what is not indexed, more slowly.
            self._searches = False
        self._unindexed = 0


def _settle_all(commits: Sequence[_Commit], failure: Exception | None) -> None:
    """Settle every commit and wake each event loop once: a wake-up for each commit would pass the interpreter's lock
    to and fro as many times."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[_Commit]] = {}
    for commit in commits:
        by_loop.setdefault(commit.loop, []).append(commit)
    for loop, waiting in by_loop.items():
        if loop is None:
            _settle(waiting, failure)
            continue
        try:
            loop.call_soon_threadsafe(_settle, waiting, failure)
        except RuntimeError:
            if not loop.is_closed():
                raise


def _settle(commits: Sequence[_Commit], failure: Exception | None) -> None:
    for commit in commits:
        commit.settle(failure)


def _encoded(episode: Episode) -> EpisodeRows:
    try:
        return to_rows(episode)
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(f"episode {episode.key} cannot be stored: {error}") from error
