"""What a run tells whoever watches it, while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agentrl.rollout.contract import Episode
    from agentrl.runs.summary import Summary

__all__ = ["Plan", "Reporter", "default_reporter"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training run is going to do."""

    folder: Path
    agent: str
    model: str
    steps: int
    """Optimiser steps in all."""
    episodes_per_step: int
    tasks: str
    """The tasks that are trained, as the config names them."""
    held_out: str | None
    """The tasks of evaluations; ``None`` where nothing is evaluated."""
    reward: str | None
    """What scores the answers; ``None`` where the agent returns its own."""


class Reporter(Protocol):
    """Shows a run as it goes; ``note`` and ``warning`` may come from any thread, the others from one.

    Of the metrics a display looks at ``reward/mean``, ``rollout/episodes``, ``tokens/completion`` and
    ``seconds/…`` of a step, and at ``evaluation/reward`` and ``evaluation/reward_greedy``; what is not there
    it does not show.
    """

    def run_started(self, plan: Plan) -> None:
        """The run folder is there and training is about to begin."""
        ...

    def stage(self, name: str, episodes: int | None = None) -> None:
        """What goes on from now, in words such as ``evaluating``, and of how many episodes it consists."""
        ...

    def episode_finished(self, episode: Episode) -> None:
        """One of the stage's episodes has ended."""
        ...

    def step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimiser step is done; ``step`` counts from 1."""
        ...

    def evaluation_finished(self, step: int, results: Mapping[str, float]) -> None:
        """The weights after ``step`` optimiser steps have been evaluated."""
        ...

    def note(self, text: str) -> None:
        """Something to know, that is nobody's fault."""
        ...

    def warning(self, text: str) -> None:
        """Something that the user may want to change."""
        ...

    def run_finished(self, summary: Summary) -> None:
        """The run has ended, in whatever way."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. Safe to call twice, and whatever happened before."""
        ...


def default_reporter(*, tracebacks: bool = False) -> Reporter:
    """On stderr: a live display where that is a terminal, plain lines elsewhere.

    ``tracebacks`` says whether the first failed episode of each cause is shown with the traceback of its agent.
    """
    from agentrl.reporting.display import open_display

    return open_display(tracebacks=tracebacks)
