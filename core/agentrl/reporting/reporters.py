"""Several reporters as one."""

from __future__ import annotations

from collections.abc import Mapping

from agentrl.reporting.reporter import Plan, Reporter
from agentrl.rollout.contract import Episode
from agentrl.runs.summary import Summary

__all__ = ["Reporters"]


class Reporters:
    """Tells each of ``reporters`` everything, in their order."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = list(reporters)

    def add(self, reporter: Reporter) -> None:
        """Tell ``reporter`` too, from now on."""
        self._reporters.append(reporter)

    def run_started(self, plan: Plan) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.run_started(plan)

    def stage(self, name: str, episodes: int | None = None) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.stage(name, episodes)

    def episode_finished(self, episode: Episode) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.episode_finished(episode)

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.step_finished(step, metrics)

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.evaluation_finished(step, results)

    def note(self, text: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.note(text)

    def warning(self, text: str) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.warning(text)

    def run_finished(self, summary: Summary) -> None:
        """Pass it on."""
        for reporter in self._reporters:
            reporter.run_finished(summary)

    def close(self) -> None:
        """Close every one."""
        for reporter in self._reporters:
            reporter.close()
