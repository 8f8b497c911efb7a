"""The dispatcher: keeps a number of episodes in flight, and yields each group as soon as its last episode is stored.

The failure budget, by which it stops a run that only fails, is at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from agentrl.errors import RunError, one_line, shortened
from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.admission import Admission
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Group, Phase
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.tasks.contract import Task

__all__ = ["SMALLEST_WINDOW", "Dispatcher", "FailureBudget", "GroupRequest"]

SMALLEST_WINDOW = 16
"""Episodes that a failure budget looks at where a step has fewer: of a handful, half may fail by chance."""

AROUND_S = 300.0
"""Seconds of an attempt that are neither the agent's nor the reward's, at most: a worker process has 120 to start."""

_ENDING_S = 60.0
"""Seconds that episodes have to end in when they are cancelled; those that go on regardless are left behind."""
_PHASES: dict[Phase, str] = {
    "train": "the rollout of training episodes",
    "eval": "the evaluation",
    "eval-greedy": "the greedy evaluation",
}
_REASON_CHARACTERS = 400
_REASONS_TOLD = 3


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A group to be rolled out: a task, run once for each of its ``samples``."""

    phase: Phase
    ordinal: int
    """The group's number in its phase; see ``EpisodeKey.group``."""
    task: int
    """Index of the task in its set."""
    data: Task
    samples: Sequence[int]
    """The sample numbers of its episodes; there is at least one."""
    settings: Callable[[EpisodeKey], SessionSettings]
    """How the session of each episode samples."""
    kept: Sequence[Episode] = ()
    """Those of its episodes that exist already, as after a run was resumed; they are not run again."""

    @property
    def missing(self) -> list[int]:
        """The sample numbers of the episodes that are to be run."""
        there = {episode.key.sample for episode in self.kept}
        return [sample for sample in self.samples if sample not in there]


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Rolls out groups, at most ``concurrency`` episodes of each ``dispatch`` at once."""

    runner: EpisodeRunner
    concurrency: int
    budget: FailureBudget
    """Shared by everything that is dispatched here, training and evaluations alike."""
    finished: Callable[[Episode], Awaitable[None]]
    """Called for every episode that has ended, before it counts: it makes the episode durable."""
    admission: Admission | None = None
    """Holds episodes back while calls wait for the engine; ``None`` lets them start as ``concurrency`` allows."""

    @property
    def patience(self) -> float:
        """Seconds within which one of the episodes in flight ends, whatever the others do.

        An attempt is given ``timeout`` for the agent and as much for its reward; the rest is for what comes around
        them, such as a worker process that starts.
        """
        return (2 * self.runner.timeout + AROUND_S) * self.runner.max_attempts

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
        all episodes of ``requests`` have failed when they end, or where none of those in flight ends within
        ``patience``.
        """
        dispatch = _Dispatch(self)
        running = asyncio.get_running_loop().create_task(dispatch.run(requests))
        running.add_done_callback(lambda _: dispatch.finished.put_nowait(None))
        try:
            while (group := await dispatch.finished.get()) is not None:
                dispatch.room.release()
                yield group
            if dispatch.stalled is not None:
                raise dispatch.stalled
            await running
        finally:
            dispatch.guard(None)
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
        self.stalled: RunError | None = None
        """Why nothing more is waited for, once nothing ends any more."""
        self._episodes = 0
        self._failed = 0
        self._started = self._begun = self._ended = 0
        self._held = 0.0
        """Seconds for which the next episode was held back."""
        self._in_flight: dict[EpisodeKey, None] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def guard(self, seconds: float | None) -> None:
        """Expect an episode to end within ``seconds`` from now; ``None`` expects nothing."""
        if self._alarm is not None:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = None if seconds is None else loop.call_later(seconds, self._stall, seconds)

    def _stall(self, seconds: float) -> None:
        runner, oldest = self._dispatcher.runner, next(iter(self._in_flight))
        self.stalled = RunError(
            f"waited {seconds:g} s for {_PHASES[oldest.phase]}: of {len(self._in_flight)} episodes in flight none has "
            f"ended, though an attempt has {runner.timeout:g} s, and so has its reward; the oldest is {oldest}",
            fix="mend what keeps rollout.episode_timeout from ending them (the executor of rollout.mode, or a reward)",
        )
        self.finished.put_nowait(None)

    def _ends(self, key: EpisodeKey) -> None:
        self._ended += 1
        del self._in_flight[key]
        self.guard(self._dispatcher.patience if self._in_flight else None)

    async def run(self, requests: Iterable[GroupRequest] | AsyncIterable[GroupRequest]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                # The slot of the next episode is free before its request is taken.
                await self._may_start()
                async for request in _each(requests):
                    episodes = list(request.kept)
                    if not request.missing:
                        await self._finish(request, episodes)
                    for sample in request.missing:
                        tasks.create_task(self._episode(request, sample, episodes))
                        self._start(request)
                        await self._may_start()
        except BaseExceptionGroup as errors:
            # A task group wraps even a single error; the first is what stopped the others.
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        finally:
            while self._begun < self._started:  # Those that were cancelled before their first step.
                self._begin()
        self._dispatcher.budget.conclude(self._episodes, self._failed)

    async def _may_start(self) -> None:
        """Wait until a further episode may start."""
        await self._slots.acquire()
        if (admission := self._dispatcher.admission) is not None:
            self._held = await admission.admitted(lambda: self._started - self._ended)

    def _start(self, request: GroupRequest) -> None:
        self._started += 1
        if (admission := self._dispatcher.admission) is not None:
            admission.start(self._held if request.phase == "train" else None)

    def _begin(self) -> None:
        self._begun += 1
        if (admission := self._dispatcher.admission) is not None:
            admission.started()

    async def _episode(self, request: GroupRequest, sample: int, episodes: list[Episode]) -> None:
        """Run an episode; the last of a group puts all ``episodes`` of it, in the order of their samples."""
        key = EpisodeKey(request.phase, request.ordinal, request.task, sample)
        dispatcher = self._dispatcher
        self._begin()
        if not self._in_flight:
            self.guard(dispatcher.patience)
        self._in_flight[key] = None
        try:
            try:
                episode = await dispatcher.runner.run_episode(key, request.data, request.settings(key))
                stored = await self._stored(request, episode, episodes)
            finally:
                self._ends(key)
            for each in stored:
                self._count(each)
            if len(episodes) == len(request.samples):
                await self._finish(request, episodes)
        finally:
            self._slots.release()

    async def _stored(self, request: GroupRequest, episode: Episode, episodes: list[Episode]) -> list[Episode]:
        """Add ``episode`` to ``episodes``, those of its group that have ended, and store it; returns what was stored.

        Where the answers of a group are scored together, an episode waits in memory for the last of its group, whose
        call scores and stores them all.
        """
        runner, finished = self._dispatcher.runner, self._dispatcher.finished
        stored = [] if runner.waits(episode) else [episode]
        for each in stored:
            await finished(each)
        episodes.append(episode)
        waiting = {each.key for each in episodes if runner.waits(each)}
        if len(episodes) < len(request.samples) or not waiting:
            return stored
        episodes[:] = await runner.score_together(sorted(episodes, key=_by_sample))
        scored = [each for each in episodes if each.key in waiting]
        for failed in await asyncio.gather(*map(finished, scored), return_exceptions=True):
            if failed is not None:
                raise failed
        return stored + scored

    def _count(self, episode: Episode) -> None:
        """Take in an episode that is stored. Raises ``RunError`` once the failure budget is spent."""
        self._episodes += 1
        self._failed += episode.failure is not None
        self._dispatcher.budget.add(episode.key, episode.failure)

    async def _finish(self, request: GroupRequest, episodes: list[Episode]) -> None:
        await self.room.acquire()
        ordered = sorted(episodes, key=_by_sample)
        self.finished.put_nowait(Group(request.task, tuple(ordered)))


def _by_sample(episode: Episode) -> int:
    return episode.key.sample


async def _each(requests: Iterable[GroupRequest] | AsyncIterable[GroupRequest]) -> AsyncIterator[GroupRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel ``task`` and wait until it has ended, however often the waiting is cancelled; its error is dropped.

    One that goes on regardless is left behind after a minute.
    """
    cancelled: asyncio.CancelledError | None = None
    task.cancel()
    loop = asyncio.get_running_loop()
    until = loop.time() + _ENDING_S
    while not task.done() and loop.time() < until:
        try:
            await asyncio.wait({task}, timeout=until - loop.time())
        except asyncio.CancelledError as error:
            cancelled = error
    # Marks its error as seen: `dispatch` has raised it, or the consumer has left.
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    if cancelled is not None:
        raise cancelled


class FailureBudget:
    """Stops a run of which too large a share fails: a sliding window over the most recently finished episodes."""

    def __init__(self, share: float, window: int) -> None:
        """More than ``share`` of the last ``window`` episodes may not fail, nor may all of them.

        An episode that has not finished yet counts as one that does not fail, so that the first few of a run that
        happen to fail stop nothing.
        """
        self._share = share
        self._window: deque[tuple[EpisodeKey, Failure | None]] = deque(maxlen=window)
        self._size = window
        self._failed = 0

    def add(self, key: EpisodeKey, failure: Failure | None) -> None:
        """Take in a finished episode, with its failure if it has failed.

        Raises ``RunError``, with the commonest reasons and a key of each, once the budget is spent.
        """
        if len(self._window) == self._size:
            self._failed -= self._window[0][1] is not None
        self._window.append((key, failure))
        self._failed += failure is not None
        if failure is not None and (self._failed > self._share * self._size or self._failed == self._size):
            raise self._spent(f"{self._failed} of the last {len(self._window)} episodes failed")

    def conclude(self, episodes: int, failed: int) -> None:
        """Take in that ``failed`` of the ``episodes`` that belong together failed: those of a step or an evaluation.

        Raises ``RunError`` where all of them did, which is over any budget, however few they are.
        """
        if failed and failed == episodes:
            raise self._spent(f"{failed} of {episodes} episodes failed")

    def _spent(self, what: str) -> RunError:
        failures = [(failure, key) for key, failure in self._window if failure is not None]
        counts = Counter(failure.kind for failure, _ in failures)
        first = {failure.kind: (failure, key) for failure, key in reversed(failures)}
        reasons = [
            f"{count}x {shortened(one_line(first[kind][0]), _REASON_CHARACTERS)} [{first[kind][1]}]"
            for kind, count in counts.most_common(_REASONS_TOLD)
        ]
        budget = f", or raise rollout.failure_budget above {self._share:g}" if self._share < 1 else ""
        return RunError(
            f"{what}, over the failure budget; commonest: {'; '.join(reasons)}", fix=f"mend the cause{budget}"
        )
