"""The episode store: every finished episode, on disk before it may train.

One thread writes. It commits what has gathered while it was busy in one transaction, so that the wait
for the disk is shared by all who wait; readers, in this process or another, are never in its way.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from agentrl.errors import RunError
from agentrl.rollout.contract import Episode, Phase
from agentrl.runs.codec import Row, from_row, to_row
from agentrl.runs.database import (
    SELECT,
    Journal,
    close_for_writing,
    database_error,
    insert,
    mark_trained,
    open_for_reading,
    open_for_writing,
)
from agentrl.runs.lock import FolderLock

__all__ = ["EpisodeStore", "read_episodes"]

_PAGE = 128
"""How many episodes a reader takes at once; it holds no transaction while its caller looks at them."""


@dataclass(frozen=True, slots=True)
class _Commit:
    rows: Sequence[Row]
    trained: tuple[Sequence[int], int] | None
    """Ordinals of groups, and the step that has trained them."""
    done: Future[None] | asyncio.Future[None]

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop whose thread alone may touch ``done``; ``None`` where any may."""
        return self.done.get_loop() if isinstance(self.done, asyncio.Future) else None

    def settle(self, error: Exception | None) -> None:
        """Say how it went, unless nobody waits any more."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class EpisodeStore:
    """The one writer of a run's episodes. ``commit`` may be called from any thread and any event loop.

    Raises ``RunError`` where the file cannot be written, is not an episode store, or another process
    has its folder open for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FolderLock(path.parent)
        try:
            self._connection, self._journal = open_for_writing(path)
        except BaseException:
            self._lock.release()
            raise
        self._queue: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="episode-store", daemon=True)
        self._thread.start()

    @property
    def journal(self) -> Journal:
        """How SQLite keeps a commit whole."""
        return self._journal

    @property
    def notes(self) -> list[str]:
        """What whoever starts the run should know about the file system; empty on an ordinary disk."""
        notes = []
        if self._journal == "delete":
            notes.append(
                f"the file system of {self.path.parent} cannot do a write-ahead log: "
                "episodes are stored with a rollback journal, which is slower and makes readers wait"
            )
        if not self._lock.held:
            notes.append(f"{self.path.parent} cannot be locked: see to it that no second run writes there")
        return notes

    async def commit(self, episodes: Sequence[Episode]) -> None:
        """Store ``episodes``, all or none, and return once they are on disk.

        Cancelling the wait does not undo the commit. Raises ``RunError`` where it fails.
        """
        done = asyncio.get_running_loop().create_future()
        self._enqueue(_Commit([_encoded(episode) for episode in episodes], None, done))
        await done

    async def mark_trained(self, groups: Sequence[int], step: int) -> None:
        """Note that the optimiser step ``step`` has trained the committed training groups with these ordinals.

        Returns once that is on disk. Raises ``RunError`` where it fails.
        """
        done = asyncio.get_running_loop().create_future()
        self._enqueue(_Commit([], (groups, step), done))
        await done

    def submit(self, episodes: Sequence[Episode]) -> Future[None]:
        """Like ``commit``, for code without an event loop: the future is done when they are on disk.

        Raises ``RunError`` at once for an episode that no row can hold.
        """
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()
        self._enqueue(_Commit([_encoded(episode) for episode in episodes], None, done))
        return done

    def _enqueue(self, commit: _Commit) -> None:
        with self._closing:
            if self._closed:
                raise RunError(f"the episode store {self.path} is closed")
            self._queue.put(commit)

    def episodes(
        self, phase: Phase | None = None, *, version: int | None = None, trained_step: int | None = None
    ) -> Iterator[Episode]:
        """The committed episodes; see ``read_episodes``."""
        return read_episodes(self.path, phase, version=version, trained_step=trained_step)

    def close(self) -> None:
        """Commit what was submitted and close the file. Safe to call twice."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                gathered, last = self._gather(first)
                self._write(gathered)
                if last:
                    return
        finally:
            close_for_writing(self._connection)
            self._lock.release()

    def _gather(self, first: _Commit) -> tuple[list[_Commit], bool]:
        """``first`` and what came after it, and whether that is all there will be."""
        gathered = [first]
        while not self._queue.empty():
            commit = self._queue.get()
            if commit is None:
                return gathered, True
            gathered.append(commit)
        return gathered, False

    def _write(self, commits: Sequence[_Commit]) -> None:
        failure: Exception | None = None
        try:
            insert(self._connection, [row for commit in commits for row in commit.rows])
            for commit in commits:
                if commit.trained is not None:
                    mark_trained(self._connection, *commit.trained)
        except Exception as error:  # whatever it is, those who wait are to hear of it
            failure = database_error(self.path, error, "write") if isinstance(error, sqlite3.Error) else error
        _tell(commits, failure)


def read_episodes(
    path: Path, phase: Phase | None = None, *, version: int | None = None, trained_step: int | None = None
) -> Iterator[Episode]:
    """The episodes of the store at ``path``, which its run may still be writing; oldest commit first.

    All of them, or those of a phase, dispatched under a policy version, or trained by an optimiser step. Raises
    ``RunError`` where there is no store to read.
    """
    wanted = {"phase": phase, "version": version, "trained_step": trained_step}
    where = " AND ".join(["id > :after", *(f"{name} = :{name}" for name, value in wanted.items() if value is not None)])
    select = f"{SELECT} WHERE {where} ORDER BY id LIMIT {_PAGE}"
    connection = open_for_reading(path)
    try:
        after: int | None = 0
        while after is not None:
            rows = connection.execute(select, {"after": after, **wanted}).fetchall()
            yield from (from_row(row[1:]) for row in rows)
            after = rows[-1][0] if len(rows) == _PAGE else None
    except sqlite3.Error as error:
        raise database_error(path, error, "read") from error
    finally:
        connection.close()


def _tell(commits: Sequence[_Commit], failure: Exception | None) -> None:
    """Say how it went, and wake each event loop once: a wake-up a commit would pass the interpreter's lock
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


def _encoded(episode: Episode) -> Row:
    try:
        return to_row(episode)
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(f"episode {episode.key} cannot be stored: {error}") from error
