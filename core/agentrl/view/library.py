"""The runs that are shown: those of folders, also ones that begin later, and those that were named."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentrl.errors import ConfigError, near_matches
from agentrl.runs.folder import run_names
from agentrl.runs.reader import Run

__all__ = ["Library"]


class Library:
    """Finds runs by their names. May be used by any thread.

    ``places`` are run folders and folders of runs, and are looked into anew at every call. A reader keeps what it has
    read of a run, so that a page that asks again reads only what is new.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        self.places = tuple(places)
        self._runs: dict[Path, tuple[int, Run]] = {}
        """The reader of each run folder, and when its config was written: a resumed run may have another."""
        self._finding = threading.Lock()

    def names(self) -> list[str]:
        """The names of the runs, each with a number behind it where a run before it has the same."""
        return list(self._folders())

    def run(self, name: str) -> Run:
        """The run that ``names`` calls ``name``. Raises ``ConfigError`` where there is none."""
        folders = self._folders()
        if name not in folders:
            raise ConfigError(f"there is no run {name!r} here", fix=near_matches(name, folders))
        return self._reader(folders[name])

    def runs(self) -> Iterator[tuple[str, Run]]:
        """Every run with its name. One whose folder is taken away meanwhile is left out."""
        for name, folder in self._folders().items():
            try:
                yield name, self._reader(folder)
            except ConfigError:
                continue

    def _reader(self, folder: Path) -> Run:
        try:
            written = (folder / "config.yaml").stat().st_mtime_ns
        except OSError as error:
            raise ConfigError(f"the run in {folder} is gone: {error.strerror}") from error
        with self._finding:
            known = self._runs.get(folder)
            if known is None or known[0] != written:
                known = self._runs[folder] = written, Run(folder)
            return known[1]

    def _folders(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in dict.fromkeys(folder for place in self.places for folder in _runs_at(place)):
            name, number = folder.name, 2
            while name in found:
                name, number = f"{folder.name}-{number}", number + 1
            found[name] = folder
        return found


def _runs_at(place: Path) -> list[Path]:
    place = place.resolve()
    return [place] if (place / "config.yaml").is_file() else [place / name for name in run_names(place)]
