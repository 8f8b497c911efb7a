"""What pages read of a run's episode store: whole episodes once, and whether anything in it is new."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from agentrl.rollout.contract import Episode
from agentrl.runs.contract import EpisodeRow
from agentrl.runs.reader import Run

__all__ = ["StoredEpisodes", "store_mark"]

_KEPT = 4
"""Whole episodes that are kept: one with 100,000 tokens takes some megabytes."""


def store_mark(run: Run) -> tuple[object, ...]:
    """What changes whenever the episode store of ``run`` does, told without opening it."""
    return (str(run.path), *(_size(run.path / name) for name in ("episodes.sqlite", "episodes.sqlite-wal")))


def _size(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class StoredEpisodes:
    """Whole episodes as they were read last, since several pages and parts of pages show the same one.

    May be used by any thread.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, EpisodeRow], Episode] = OrderedDict()
        self._keeping = threading.Lock()

    def read(self, run: Run, row: EpisodeRow) -> Episode:
        """The whole episode of ``row``. Raises as ``Run.episode`` does."""
        with self._keeping:
            episode = self._kept.get((run.path, row))
        if episode is None:
            episode = run.episode(row.key)
        with self._keeping:
            self._kept[run.path, row] = episode
            self._kept.move_to_end((run.path, row))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return episode
