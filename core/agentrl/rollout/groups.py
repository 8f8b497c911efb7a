"""Dispatching groups of episodes under a concurrency limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.contract import Episode, EpisodeKey, Group, Phase
from agentrl.rollout.failures import FailureBudget
from agentrl.rollout.runner import EpisodeRunner
from agentrl.tasks.contract import Task

__all__ = ["Batch", "IndexedTask", "Rollout"]


@dataclass(frozen=True, slots=True)
class IndexedTask:
    """A task and its index in its set."""

    index: int
    data: Task


@dataclass(frozen=True, slots=True)
class Batch:
    """Which episodes to run: every task ``group_size`` times."""

    phase: Phase
    step: int
    tasks: Sequence[IndexedTask]
    group_size: int
    settings: Callable[[EpisodeKey], SessionSettings]
    """How the session of an episode samples."""

    @property
    def where(self) -> str:
        """The batch in words, for messages."""
        return f"step {self.step}" if self.phase == "train" else f"the evaluation at step {self.step}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """Runs batches of episodes, at most ``concurrency`` at once."""

    runner: EpisodeRunner
    concurrency: int
    failure_budget: float
    """Share of a batch's episodes that may fail."""
    finished: Callable[[Episode], Awaitable[None]]
    """Called for every ended episode, before it counts: it makes the episode durable."""

    async def run(self, batch: Batch) -> list[Group]:
        """Run all episodes of a batch; a failed one leaves its group smaller.

        Raises ``RunError`` once the failure budget is spent, and ends the others first.
        """
        slots = asyncio.Semaphore(self.concurrency)
        budget = FailureBudget(self.failure_budget, len(batch.tasks) * batch.group_size, batch.where)
        try:
            async with asyncio.TaskGroup() as tasks:
                groups = [
                    [tasks.create_task(self._episode(batch, task, sample, slots, budget)) for sample in samples]
                    for task, samples in _samples(batch)
                ]
        except BaseExceptionGroup as errors:
            # A task group wraps even a single error; the first is what stopped the others.
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        return [
            Group(task.index, tuple(episode.result() for episode in episodes))
            for task, episodes in zip(batch.tasks, groups, strict=True)
        ]

    async def _episode(
        self, batch: Batch, task: IndexedTask, sample: int, slots: asyncio.Semaphore, budget: FailureBudget
    ) -> Episode:
        key = EpisodeKey(batch.phase, batch.step, task.index, sample)
        async with slots:
            episode = await self.runner.run(key, task.data, batch.settings(key))
            await self.finished(episode)
        if episode.failure is not None:
            budget.add(episode.failure, key)
        return episode


def _samples(batch: Batch) -> Iterator[tuple[IndexedTask, range]]:
    """Each task with its sample numbers, which go on where a small set repeats a task within a batch."""
    taken: Counter[int] = Counter()
    for task in batch.tasks:
        first = taken[task.index]
        taken[task.index] += batch.group_size
        yield task, range(first, first + batch.group_size)
