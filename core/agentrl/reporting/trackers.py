"""All trackers of a run as one; a tracker that fails or hangs is left out and never ends or delays the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentrl.errors import AgentRLError, one_line
from agentrl.redaction import redact_config
from agentrl.reporting.contract import EpisodeTracker, SummaryTracker, Tracker
from agentrl.reporting.listener import Failure, Listener, settle
from agentrl.rollout.contract import Episode
from agentrl.runs.contract import MetricsLine, RunInfo, Summary

if TYPE_CHECKING:
    from agentrl.config.models import Config
    from agentrl.config.section import Part
    from agentrl.plugins import Plugins

__all__ = ["Trackers"]


class Trackers:
    """Calls every tracker, each in a thread of its own.

    One that raises, or does not return within ``patience`` seconds, is disabled with a warning, and its name added to
    ``failed``. ``trackers`` are names and trackers. Leaving the ``with`` block calls ``finish`` where nobody has.
    """

    def __init__(
        self, trackers: Iterable[tuple[str, Tracker]], warn: Callable[[str], None], patience: float = 60.0
    ) -> None:
        self._trackers = [(Listener(name, patience, self._off), tracker) for name, tracker in trackers]
        self._warn = warn
        self._refusals: list[AgentRLError] = []
        self._starting = False
        self.failed: list[str] = []
        """Names of the trackers that were disabled."""
        self.notes: list[str] = []
        """What trackers had to say when they started, such as where the run can be looked at."""

    @classmethod
    def build(
        cls, plugins: Plugins, parts: Iterable[Part], warn: Callable[[str], None], patience: float = 60.0
    ) -> Self:
        """Build the trackers that ``trackers`` in the config names.

        Raises ``ConfigError`` for a name or key that is not known and ``PluginError`` for a missing package.
        """
        return cls([(part.name, plugins.build("trackers", part)) for part in parts], warn, patience)

    def start(self, run: RunInfo, config: Config) -> None:
        """Call ``start`` of every tracker, and wait for it: one may refuse the run by the ``AgentRLError`` it raises.

        That error is raised here. A tracker that hangs is waited for as long as any call of it may take.
        """
        plain = redact_config(config.model_dump(mode="json"))
        self._starting = True
        for listener, tracker in self._trackers:
            listener.tell("start", partial(self._start, listener.name, tracker, run, plain))
        settle(listener for listener, _ in self._trackers)
        self._starting = False
        for refusal in self._refusals:
            raise refusal

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Have ``log`` of every tracker called that has not failed; nothing is waited for.

        An evaluation and a step may have the same number, and each its own ``cost/seconds``: every number of an
        evaluation is told by a name that begins with ``evaluation/``.
        """
        if MetricsLine(step, 0.0, dict(metrics)).is_evaluation:
            metrics = {f"evaluation/{name.removeprefix('evaluation/')}": value for name, value in metrics.items()}
        self._tell("log", lambda tracker: tracker.log(step, metrics))

    def log_episode(self, episode: Episode) -> None:
        """Have ``log_episode`` called of every tracker that has it and has not failed; nothing is waited for."""
        for listener, tracker in self._trackers:
            if isinstance(tracker, EpisodeTracker):
                listener.tell("log_episode", partial(tracker.log_episode, episode))

    def finish(self, outcome: str, summary: Summary | None = None) -> None:
        """Call ``finish`` of every tracker that has not failed, and wait for it. Safe to call twice.

        Those that have ``log_summary`` are given the ``summary`` before. All of them together are waited for as long as
        one call may take.
        """
        for listener, tracker in self._trackers:
            if summary is not None and isinstance(tracker, SummaryTracker):
                listener.tell("log_summary", partial(tracker.log_summary, summary))
        self._tell("finish", lambda tracker: tracker.finish(outcome))
        settle(listener for listener, _ in self._trackers)
        for listener, _ in self._trackers:
            listener.close()
        self._trackers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("completed" if error is None else f"failed: {error}")

    def _start(self, name: str, tracker: Tracker, run: RunInfo, config: Mapping[str, Any]) -> None:
        note = tracker.start(run, config)
        if isinstance(note, str):
            self.notes.append(f"tracker {name}: {one_line(note)}")

    def _tell(self, verb: str, method: Callable[[Tracker], object]) -> None:
        for listener, tracker in self._trackers:
            listener.tell(verb, partial(method, tracker))

    def _off(self, failure: Failure) -> None:
        if self._starting and isinstance(failure.error, AgentRLError):
            self._refusals.append(failure.error)
            return
        self.failed.append(failure.name)
        what, reason = failure.why, ""
        if failure.error is not None:
            what, reason = f"raised in {failure.call}", one_line(f": {type(failure.error).__name__}: {failure.error}")
        self._warn(f"tracker {failure.name!r} {what} and is off for the rest of the run{reason}")
