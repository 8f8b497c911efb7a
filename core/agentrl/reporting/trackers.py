"""The trackers of a run, as one: none of them can sink it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentrl.errors import AgentRLError, one_line
from agentrl.reporting.contract import RunInfo, Tracker

if TYPE_CHECKING:
    from agentrl.config.models import Config, Part
    from agentrl.plugins import Plugins
    from agentrl.runs.folder import RunFolder

__all__ = ["Trackers"]


class Trackers:
    """Tells every tracker; one that raises is disabled with a warning, and counted in ``failed``.

    Leaving its ``with`` block finishes what has not been finished.
    """

    def __init__(self, trackers: Iterable[tuple[str, Tracker]], warn: Callable[[str], None]) -> None:
        self._trackers = list(trackers)
        self._warn = warn
        self.failed: list[str] = []
        """Names of those that were disabled."""

    @classmethod
    def build(cls, plugins: Plugins, parts: Iterable[Part], warn: Callable[[str], None]) -> Self:
        """Build what ``trackers`` in the config names.

        Raises ``ConfigError`` for a name or key that is not known and ``PluginError`` for a missing package.
        """
        return cls([(part.name, plugins.build("trackers", part)) for part in parts], warn)

    def start(self, folder: RunFolder, config: Config) -> None:
        """Begin. An ``AgentRLError`` passes through: nothing is lost yet, and the user can mend it."""
        run = RunInfo(folder.name, folder.path, config.agent.name, config.model.name)
        plain = config.model_dump(mode="json")
        self._tell("start", lambda tracker: tracker.start(run, plain), passes=(AgentRLError,))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass numbers on."""
        self._tell("log", lambda tracker: tracker.log(step, metrics))

    def finish(self, outcome: str) -> None:
        """End, whatever ended the run. Safe to call twice."""
        self._tell("finish", lambda tracker: tracker.finish(outcome))
        self._trackers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("completed" if error is None else f"failed: {error}")

    def _tell(self, verb: str, call: Callable[[Tracker], None], passes: tuple[type[BaseException], ...] = ()) -> None:
        for entry in tuple(self._trackers):
            name, tracker = entry
            try:
                call(tracker)
            except passes:
                raise
            except Exception as error:
                self._trackers.remove(entry)
                self.failed.append(name)
                reason = one_line(f"{type(error).__name__}: {error}")
                self._warn(f"tracker {name!r} raised in {verb} and is off for the rest of the run: {reason}")
