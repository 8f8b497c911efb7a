"""The contracts of reporting: a reporter shows a run as it goes, a tracker takes its numbers elsewhere.

The registered name of a tracker is a callable that returns one, given the keys beside the name in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from agentrl.rollout.contract import Episode
from agentrl.runs.contract import RunInfo, Summary

__all__ = ["EpisodeTracker", "Reporter", "SummaryTracker", "Tracker"]


class Reporter(Protocol):
    """Shows a run as it goes; ``note`` and ``warning`` may be called from any thread, the others from one.

    Of the metrics a display looks at ``reward/mean``, ``rollout/episodes``, ``tokens/completion`` and
    ``seconds/…`` of a step, and at ``evaluation/reward`` and ``evaluation/reward_greedy``. It leaves out what a
    step did not measure.
    """

    def run_started(self, run: RunInfo) -> None:
        """The run folder is there and training is about to begin."""
        ...

    def activity_started(self, name: str, episodes: int | None = None) -> None:
        """What the run does from now on, in words such as ``evaluating``, and of how many episodes it consists."""
        ...

    def episode_finished(self, episode: Episode) -> None:
        """An episode of the current activity has ended."""
        ...

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimiser step is done; ``step`` counts from 1."""
        ...

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """The weights after ``step`` optimiser steps have been evaluated."""
        ...

    def note(self, text: str) -> None:
        """Show one line of information that needs no action."""
        ...

    def warning(self, text: str) -> None:
        """Show one line about something that the user may want to change."""
        ...

    def run_finished(self, summary: Summary) -> None:
        """The run has ended, completed or not."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. Safe to call twice, and whatever happened before."""
        ...


class Tracker(Protocol):
    """Takes the numbers of one run; called in a thread of its own, one call after another, while the run goes on.

    A tracker that raises, or does not return within ``run.hook_timeout``, is not called again, and the run goes on.
    Raising an ``AgentRLError`` from the constructor or from ``start`` refuses the run instead, for example where a
    package or an API key is missing.

    One that has the method of ``EpisodeTracker`` or of ``SummaryTracker`` as well hears of that, too.
    """

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> str | None:
        """The run begins, or goes on after ``run.resumed_from`` steps; ``config`` is the resolved config as plain JSON.

        Values of keys that name a secret, such as a password, are replaced in it. What it returns is shown to the user,
        in one line: usually where the run can be looked at.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Flat numbers after ``step`` optimiser steps.

        An evaluation and a step may share ``step``, and no name: those of an evaluation begin with ``evaluation/``.
        """
        ...

    def finish(self, outcome: str) -> None:
        """The run has ended: flush and close. ``outcome`` is as in ``summary.json``."""
        ...


@runtime_checkable
class EpisodeTracker(Protocol):
    """A tracker that shows episodes, too."""

    def log_episode(self, episode: Episode) -> None:
        """An episode of training or of an evaluation has ended, between two calls of ``log``.

        It is called for every episode: keep a few.
        """
        ...


@runtime_checkable
class SummaryTracker(Protocol):
    """A tracker that shows how a run ended, too."""

    def log_summary(self, summary: Summary) -> None:
        """The run has ended; ``finish`` is called next. Not called where no summary could be made."""
        ...
