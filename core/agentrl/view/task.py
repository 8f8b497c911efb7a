"""The page of a task: how its success went over the steps."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentrl.errors import ConfigError
from agentrl.runs.contract import EpisodeRow
from agentrl.view import frame
from agentrl.view.query import phase_of, whole

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ROUTES", "StepOfTask", "over_steps"]

_MOST = 5_000
"""Episodes of a task that are read at most, the newest ones."""


@dataclass(frozen=True, slots=True)
class StepOfTask:
    """A task's episodes in one step, or in one evaluation."""

    step: int | None
    """The step that trained them, or the steps done before the evaluation; ``None`` where no step has taken them."""
    episodes: tuple[EpisodeRow, ...]

    @property
    def rewards(self) -> list[float]:
        """The rewards of those that have one."""
        return [row.reward for row in self.episodes if row.reward is not None]

    @property
    def mean(self) -> float | None:
        """The mean reward; ``None`` where no episode has one."""
        return statistics.mean(self.rewards) if self.rewards else None

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(row.outcome == "failed" for row in self.episodes)


def over_steps(rows: Iterable[EpisodeRow]) -> list[StepOfTask]:
    """The episodes of a task by their steps, in order; those that no step has taken come last."""
    found: dict[int | None, list[EpisodeRow]] = {}
    for row in rows:
        found.setdefault(row.trained_step if row.key.phase == "train" else row.version, []).append(row)
    ordered = sorted(found, key=lambda step: (step is None, step or 0))
    return [StepOfTask(step, tuple(found[step])) for step in ordered]


def _task(request: Request) -> Response:
    name = request.path_params["run"]
    run = frame.library(request).run(name)
    phase, task = phase_of(request.path_params["phase"]), whole("task", request.path_params["task"])
    count = run.count(phase=phase, task=task)
    if not count:
        raise ConfigError(f"the run {name} has no episode of task {task} of the phase {phase}, or not yet")
    rows = run.episodes(phase=phase, task=task, descending=True, limit=_MOST)
    etag = frame.tag_of(run.path, str(request.url), count, rows)
    if (same := frame.unchanged(request, etag)) is not None:
        return same
    steps = over_steps(reversed(rows))
    return frame.page(
        request,
        "task.html",
        etag=etag,
        run=name,
        phase=phase,
        task=task,
        count=count,
        steps=steps,
        curve=_curve(steps),
        data=json.dumps(run.episode(rows[0].key).data, ensure_ascii=False, indent=2),
    )


@dataclass(frozen=True, slots=True)
class _Curve:
    points: tuple[tuple[float, float, StepOfTask], ...]
    """Places from 0 to 1, from the left and from the bottom, of each step that has a mean reward."""
    low: float
    high: float
    """The rewards at the bottom and at the top."""
    first: int
    last: int


def _curve(steps: Iterable[StepOfTask]) -> _Curve | None:
    known = [(each.step, each.mean, each) for each in steps]
    drawn = [(step, mean, each) for step, mean, each in known if step is not None and mean is not None]
    if not drawn:
        return None
    rewards = [reward for _, _, each in drawn for reward in each.rewards]
    low, high = min(rewards), max(rewards)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    first, last = drawn[0][0], drawn[-1][0]
    width = max(1, last - first)
    # Halved, for the difference of two floats as large as they can be.
    scale = high / 2 - low / 2
    points = tuple(((step - first) / width, (mean / 2 - low / 2) / scale, each) for step, mean, each in drawn)
    return _Curve(points, low, high, first, last)


ROUTES: list[BaseRoute] = [Route("/runs/{run}/tasks/{phase}/{task}", _task, name="task")]
