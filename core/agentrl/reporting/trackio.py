"""The ``trackio`` tracker: curves, config, episodes as traces and the summary, in a store on this machine.

``trackio show`` reads the store, and ``trackio sync`` sends it to a Hugging Face Space. Nothing leaves the machine
before.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sqlite3
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import Field, Strict

from agentrl.config.section import Settings as Section
from agentrl.errors import ConfigError, one_line
from agentrl.reporting.chat import chats
from agentrl.reporting.samples import Samples, row
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import RunInfo, Summary

__all__ = ["TrackioTracker"]

_FOLDER = "TRACKIO_DIR"
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
_SUMMARY = "summary/"
_IMPORTING = threading.Lock()


class TrackioTracker:
    """Logs by the ``trackio`` package into its SQLite store, ``trackio/`` in the run folder unless told otherwise."""

    class Settings(Section):
        """The keys beside the name of the tracker."""

        project: str = Field("agentrl", min_length=1)
        """The project that the run belongs to."""
        name: str | None = None
        """The run's name there; by default its own."""
        group: str | None = None
        """What runs are grouped by there."""
        tags: list[str] = Field([])
        """Tags of the run, which its config there holds."""
        dir: Annotated[Path | None, Strict(False)] = None
        """The folder of the store, where runs are to share one; by default that of `TRACKIO_DIR`, or `trackio/` in
        the run folder."""
        episodes: int = Field(8, ge=0)
        """How many sample episodes are shown as traces; 0 shows none."""
        episodes_every: int = Field(10, ge=1)
        """Steps between traces of training episodes. Every evaluation has some."""
        system: bool = False
        """Whether trackio watches the processor and the GPU, too."""

    def __init__(self, settings: Settings) -> None:
        import trackio  # noqa: F401

        self._settings = settings
        self._samples = Samples(settings.episodes)
        self._trackio: Any = None
        self._run: Any = None
        self._step = 0

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> str:
        """Begin a run there, or go on with it. Raises ``ConfigError`` where trackio is told to log elsewhere."""
        for variable in _ELSEWHERE:
            if os.environ.get(variable):
                raise ConfigError(
                    f"tracker trackio keeps its store on this machine, and {variable} is set",
                    fix=f"unset it, and send the store when the run has ended: {_sync(self._settings.project)}",
                )
        folder = self._settings.dir or Path(os.environ.get(_FOLDER) or run.folder / "trackio")
        folder = folder.expanduser().absolute()
        self._trackio = trackio = _imported(folder)
        project, name = self._settings.project, self._settings.name or run.name
        try:
            trackio.SQLiteStorage.validate_project_name(project)
        except ValueError as error:
            raise ConfigError(f"tracker trackio: {one_line(str(error))}", fix="name another `project`") from error
        last = None if run.resumed_from is None else self._forget_after(run.resumed_from, name)
        tags = {"tags": [*self._settings.tags]} if self._settings.tags else {}
        self._run = _run_class(trackio)(
            url=None,
            project=project,
            client=None,
            name=name,
            run_id=last,
            group=self._settings.group,
            config={**config, **tags},
            existing_runs=[],
            auto_log_cpu=self._settings.system,
            auto_log_gpu=self._settings.system,
        )
        return f"look at it with `{_FOLDER}={shlex.quote(str(folder))} trackio show --project {shlex.quote(project)}`"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics, with traces of the episodes that are due."""
        if self._run is None:
            return
        is_evaluation = any(name.startswith("evaluation/") for name in metrics)
        taken = self._samples.take("eval", "eval-greedy") if is_evaluation else self._samples.take("train")
        self._step = max(self._step, step)
        values: dict[str, Any] = dict(metrics)
        if is_evaluation or step % self._settings.episodes_every == 0:
            for phase, episodes in taken.items():
                values[f"episodes/{phase}"] = [self._trace(step, episode) for episode in episodes]
        self._run.log(values, step=step)

    def log_episode(self, episode: Episode) -> None:
        """Keep an episode for the next traces, if it is among the first."""
        if self._settings.episodes:
            self._samples.add(episode)

    def log_summary(self, summary: Summary) -> None:
        """Add the numbers of the summary as ``summary/…``, and the whole of it as a table."""
        if self._run is None:
            return
        plain = {name: value for name, value in summary.to_json().items() if value not in (None, {}, [])}
        numbers = {name: value for name, value in plain.items() if isinstance(value, int | float)}
        lines = [f"| {name} | {value} |" for name, value in plain.items()]
        table = self._trackio.Markdown("\n".join(["| | |", "|---|---|", *lines]))
        values = {f"{_SUMMARY}{name}": value for name, value in numbers.items()}
        self._run.log({**values, f"{_SUMMARY}table": table}, step=self._step)

    def finish(self, outcome: str) -> None:
        """Write what is left."""
        if self._run is not None:
            with _muted():
                self._run.finish()
            self._run = None

    def _trace(self, step: int, episode: Episode) -> Any:
        shown = row(step, episode)
        told = [message for chat in chats(episode) for message in chat.messages]
        messages = [{key: value for key, value in message.items() if key != "weight"} for message in told]
        beside = {name: shown[name] for name in shown if name not in ("conversation", "seconds")}
        status = "error" if episode.failure else "ok"
        return self._trackio.Trace(
            messages=messages, metadata={**beside, "status": status, "duration_ms": 1000 * episode.seconds}
        )

    def _forget_after(self, step: int, name: str) -> str | None:
        """Delete what the run logged of later steps, which come again, and its summary; returns the run's id there."""
        store, project = self._trackio.SQLiteStorage, self._settings.project
        record = store.get_latest_run_record_by_name(project, name)
        if record is None:
            return None
        with contextlib.closing(sqlite3.connect(store.get_project_db_path(project))) as connection, connection:
            for table in ("metrics", "traces"):
                later = f"DELETE FROM {table} WHERE run_id = ? AND step > ?"  # noqa: S608 - two names of our own
                connection.execute(later, (record["id"], step))
            summed_up = "DELETE FROM metrics WHERE run_id = ? AND instr(CAST(metrics AS TEXT), ?)"
            connection.execute(summed_up, (record["id"], f'"{_SUMMARY}steps"'))
        return str(record["id"])


def _sync(project: str) -> str:
    return f"trackio sync --project {project} --space-id NAME"


def _run_class(trackio: Any) -> Any:
    """The class of its runs, less the question to Hugging Face whose token is on this machine."""

    class Run(trackio.Run):  # type: ignore[misc]
        def _get_username(self) -> str | None:
            return None

    return Run


class _Muted:
    """A stream of which what one thread prints is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _muted() -> contextlib.AbstractContextManager[object]:
    """Have this thread print nothing: trackio would print among results."""
    return contextlib.redirect_stdout(_Muted(sys.stdout))


def _imported(folder: Path) -> Any:
    """The package, with ``folder`` as its store.

    It asks the environment for that once, when it is imported; so it is imported anew where it has another store, such
    as that of an earlier run in this process.
    """
    with _IMPORTING:
        loaded = importlib.import_module("trackio")
        if Path(loaded.TRACKIO_DIR) == folder:
            return loaded
        for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
            del sys.modules[name]
        before = os.environ.get(_FOLDER)
        os.environ[_FOLDER] = str(folder)
        try:
            return importlib.import_module("trackio")
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before
