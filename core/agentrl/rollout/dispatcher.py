"""The dispatcher: keeps a number of episodes in flight, and yields each group as soon as its last episode is stored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.contract import Episode, EpisodeKey, Group, Phase
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.failures import FailureBudget
from agentrl.tasks.contract import Task

__all__ = ["Dispatcher", "GroupRequest"]


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A group to be rolled out: a task, run once for each of its ``samples``."""

    phase: Phase
    ordinal: int
    """The group's number in its phase; see ``EpisodeKey.group``."""
    task: int
    """Index of the task in its set."""
    data: Task
    samples: range
    """The sample numbers of its episodes; there is at least one."""
    settings: Callable[[EpisodeKey], SessionSettings]
    """How the session of each episode samples."""


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Rolls out groups, at most ``concurrency`` episodes at once."""

    runner: EpisodeRunner
    concurrency: int
    budget: FailureBudget
    """Shared by everything that is dispatched here, training and evaluations alike."""
    finished: Callable[[Episode], Awaitable[None]]
    """Called for every episode that has ended, before it counts: it makes the episode durable."""

    async def collect(self, requests: Iterable[GroupRequest]) -> list[Group]:
        """Roll out all of ``requests``, such as those of a step or an evaluation, and return their groups in order.

        The order is that of the ordinals. Raises as ``dispatch`` does.
        """
        async with contextlib.aclosing(self.dispatch(requests)) as groups:
            return sorted([group async for group in groups], key=lambda group: group.ordinal)

    async def dispatch(
        self, requests: Iterable[GroupRequest] | AsyncIterable[GroupRequest]
    ) -> AsyncGenerator[Group, None]:
        """Yield the groups of ``requests`` as they finish, the failed episodes in them included.

        A request is taken when an episode of it can start at once, so ``requests`` may be endless and may decide
        late what comes next. While ``concurrency`` finished groups wait to be taken, no more are finished: a slow
        consumer stops the dispatching. Where ``requests``, ``finished`` or the failure budget raises, the episodes
        in flight are ended first, then the first error is raised; so it is where the consumer is cancelled or closes
        the iterator (use ``contextlib.aclosing``). Raises ``RunError`` once the failure budget is spent, or where
        all episodes of ``requests`` have failed when they end.
        """
        dispatch = _Dispatch(self)
        running = asyncio.get_running_loop().create_task(dispatch.run(requests))
        running.add_done_callback(lambda _: dispatch.finished.put_nowait(None))
        try:
            while (group := await dispatch.finished.get()) is not None:
                dispatch.room.release()
                yield group
            await running
        finally:
            await _ended(running)


class _Dispatch:
    """What is in flight of one call of ``Dispatcher.dispatch``."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._slots = asyncio.Semaphore(dispatcher.concurrency)
        self.finished: asyncio.Queue[Group | None] = asyncio.Queue()
        """Groups that wait for the consumer; ``None`` follows the last."""
        self.room = asyncio.Semaphore(dispatcher.concurrency)
        """Places for groups that wait for the consumer."""
        self._episodes = 0
        self._failed = 0

    async def run(self, requests: Iterable[GroupRequest] | AsyncIterable[GroupRequest]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                # The slot of the next episode is free before its request is taken.
                await self._slots.acquire()
                async for request in _each(requests):
                    episodes: list[Episode] = []
                    for sample in request.samples:
                        tasks.create_task(self._episode(request, sample, episodes))
                        await self._slots.acquire()
        except BaseExceptionGroup as errors:
            # A task group wraps even a single error; the first is what stopped the others.
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        self._dispatcher.budget.conclude(self._episodes, self._failed)

    async def _episode(self, request: GroupRequest, sample: int, episodes: list[Episode]) -> None:
        """Run an episode; the last of a group puts all ``episodes`` of it, in the order of their samples."""
        key = EpisodeKey(request.phase, request.ordinal, request.task, sample)
        dispatcher = self._dispatcher
        try:
            episode = await dispatcher.runner.run_episode(key, request.data, request.settings(key))
            await dispatcher.finished(episode)
            self._episodes += 1
            self._failed += episode.failure is not None
            dispatcher.budget.add(key, episode.failure)
            episodes.append(episode)
            if len(episodes) == len(request.samples):
                await self.room.acquire()
                ordered = sorted(episodes, key=lambda episode: episode.key.sample)
                self.finished.put_nowait(Group(request.task, tuple(ordered)))
        finally:
            self._slots.release()


async def _each(requests: Iterable[GroupRequest] | AsyncIterable[GroupRequest]) -> AsyncIterator[GroupRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel ``task`` and wait until it has ended, however often the waiting is cancelled; its error is dropped."""
    cancelled: asyncio.CancelledError | None = None
    task.cancel()
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled():
        task.exception()  # Marks it as seen: `dispatch` has raised it, or the consumer has left.
    if cancelled is not None:
        raise cancelled
