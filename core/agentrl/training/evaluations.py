"""The evaluations of a run: of the weights before the first step, now and then, and after the last step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from agentrl.reporting.contract import Reporter
from agentrl.runs.contract import MetricsLine
from agentrl.training.evaluation import Evaluation, Evaluator
from agentrl.training.stopwatch import Stopwatch

__all__ = ["Evaluations"]


class Evaluations:
    """Runs the evaluations of a run one after the other, and remembers the first and the newest."""

    def __init__(
        self,
        evaluator: Evaluator | None,
        version: Callable[[], int],
        done: Callable[[Evaluation], None],
        reporter: Reporter,
        stopwatch: Stopwatch,
    ) -> None:
        """``evaluator`` is ``None`` where nothing is evaluated, ``version`` tells that of the weights, and ``done`` is
        called with each evaluation when it is known."""
        self._evaluator = evaluator
        self._version = version
        self._done = done
        self._reporter = reporter
        self._stopwatch = stopwatch
        self._beside: asyncio.Task[Evaluation] | None = None
        self.before: Evaluation | None = None
        """That of the weights which training started from."""
        self.latest: Evaluation | None = None
        """The newest one."""

    def __bool__(self) -> bool:
        """Whether anything is evaluated."""
        return self._evaluator is not None

    @property
    def current(self) -> Evaluation | None:
        """The newest evaluation, if it is one of the weights as they are now."""
        return self.latest if self.latest is not None and self.latest.step == self._version() else None

    def recall(self, lines: Iterable[MetricsLine]) -> None:
        """Take up the evaluations that an earlier process of the run has written as ``lines``."""
        evaluations = [Evaluation.of_metrics(line.step, line.metrics) for line in lines if line.is_evaluation]
        self.before, self.latest = (evaluations[0], evaluations[-1]) if evaluations else (None, None)

    async def run(self) -> None:
        """Evaluate the weights as they are now."""
        if self._evaluator is not None:
            self._take(await self._measure(self._evaluator))

    def begin(self) -> None:
        """Begin to evaluate the weights as they are now; they may not change before ``finished``."""
        if self._evaluator is not None:
            self._beside = asyncio.get_running_loop().create_task(self._measure(self._evaluator))

    async def finished(self) -> None:
        """Wait for the evaluation that was begun, if there is one."""
        beside, self._beside = self._beside, None
        if beside is not None:
            self._take(await beside)

    async def stop(self) -> None:
        """End the evaluation that was begun, if there is one."""
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.wait({self._beside})
            if not self._beside.cancelled():
                self._beside.exception()  # Another error has ended the run.

    async def _measure(self, evaluator: Evaluator) -> Evaluation:
        self._reporter.activity_started("evaluating", episodes=evaluator.episodes)
        with self._stopwatch.time("evaluation"):
            return await evaluator.run(self._version())

    def _take(self, evaluation: Evaluation) -> None:
        self.latest = evaluation
        self.before = self.before or evaluation
        self._done(evaluation)
