"""All trackers of a run as one; a tracker that fails is left out and never ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentrl.errors import AgentRLError, one_line
from agentrl.reporting.contract import Tracker
from agentrl.runs.contract import RunInfo

if TYPE_CHECKING:
    from agentrl.config.models import Config, Part
    from agentrl.plugins import Plugins

__all__ = ["Trackers"]


class Trackers:
    """Calls every tracker; one that raises is disabled with a warning, and its name added to ``failed``.

    ``trackers`` are names and trackers. Leaving the ``with`` block calls ``finish`` where nobody has.
    """

    def __init__(self, trackers: Iterable[tuple[str, Tracker]], warn: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._warn = warn
        self.failed: list[str] = []
        """Names of the trackers that were disabled."""

    @classmethod
    def build(cls, plugins: Plugins, parts: Iterable[Part], warn: Callable[[str], None]) -> Self:
        """Build the trackers that ``trackers`` in the config names.

        Raises ``ConfigError`` for a name or key that is not known and ``PluginError`` for a missing package.
        """
        return cls([(part.name, plugins.build("trackers", part)) for part in parts], warn)

    def start(self, run: RunInfo, config: Config) -> None:
        """Call ``start`` of every tracker. Raises the ``AgentRLError`` by which a tracker refuses the run."""
        plain = config.model_dump(mode="json")
        self._call("start", lambda tracker: tracker.start(run, plain), passes=(AgentRLError,))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Call ``log`` of every tracker that has not failed."""
        self._call("log", lambda tracker: tracker.log(step, metrics))

    def finish(self, outcome: str) -> None:
        """Call ``finish`` of every tracker that has not failed. Safe to call twice."""
        self._call("finish", lambda tracker: tracker.finish(outcome))
        self._trackers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("completed" if error is None else f"failed: {error}")

    def _call(self, verb: str, method: Callable[[Tracker], None], passes: tuple[type[BaseException], ...] = ()) -> None:
        for entry in tuple(self._trackers):
            name, tracker = entry
            try:
                method(tracker)
            except passes:
                raise
            except Exception as error:
                self._trackers.remove(entry)
                self.failed.append(name)
                reason = one_line(f"{type(error).__name__}: {error}")
                self._warn(f"tracker {name!r} raised in {verb} and is off for the rest of the run: {reason}")
