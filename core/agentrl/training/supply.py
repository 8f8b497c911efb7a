"""The supply of groups: keeps them rolling out within the staleness bound, and hands each step those that it trains."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from agentrl.config.models import Config
from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.buffer import GroupBuffer, Taken
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.rollout.dispatcher import Dispatcher, GroupRequest
from agentrl.training.replay import OpenGroups
from agentrl.training.requests import group_request
from agentrl.training.stopwatch import Stopwatch
from agentrl.training.task_order import TaskOrder

__all__ = ["GroupSupply", "Supply"]


class Supply(Protocol):
    """Where a run's groups come from: gathers them while its ``async with`` block lasts, and hands each step its own.

    For one event loop and one consumer.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def cursor(self) -> int:
        """The first ordinal whose group no step has taken for good."""
        ...

    def take_up(self, begun: OpenGroups, version: int) -> None:
        """Go on at ``version`` with what a run had begun when it ended; called before the ``async with`` block."""
        ...

    async def take(self) -> Taken:
        """Wait for the groups of the step at the present version, and take them. Raises what stops the run."""
        ...

    def served(self, version: int) -> None:
        """The step is over, and the engine serves ``version`` from now on."""
        ...

    def pause(self) -> None:
        """From now on nothing starts that can be held back, until ``resume``."""
        ...

    def resume(self) -> None:
        """Let groups start again."""
        ...

    async def at_rest(self) -> None:
        """Wait until nothing is in flight that ``pause`` holds back. Raises as ``take`` does."""
        ...

    def counts(self) -> dict[str, float]:
        """Metrics of what was supplied since the call before."""
        ...


class GroupSupply:
    """Rolls out groups while its ``async with`` block lasts; what is in flight at the end is ended.

    A group starts as soon as the rule of staleness admits it and an episode of it can run. Near the end of the run no
    group starts that no step would train. For one event loop and one consumer.
    """

    def __init__(
        self,
        config: Config,
        dispatcher: Dispatcher,
        order: TaskOrder,
        buffer: GroupBuffer,
        *,
        qualifies: Callable[[Group], bool],
        stopwatch: Stopwatch,
        started: Callable[[EpisodeKey], None] = lambda key: None,
    ) -> None:
        """``qualifies`` says of a finished group whether the algorithm's filter would let it enter a batch.

        It is asked where ``rollout.dynamic_sampling`` replaces groups that do not. ``started`` is called whenever an
        episode starts. The time in which an episode could have run and the rule admitted none is added to
        ``stopwatch`` as ``held``.
        """
        self._config = config
        self._dispatcher = dispatcher
        self._order = order
        self._buffer = buffer
        self._qualifies = qualifies
        self._started = started
        self._stopwatch = stopwatch
        self._again: deque[int] = deque()
        """Ordinals of groups that are to be rolled out once more."""
        self._attempts: Counter[int] = Counter()
        self._kept: dict[int, tuple[Episode, ...]] = {}
        """Finished episodes of groups that hold a slot already and have others to be run, by ordinal."""
        self._rolling = 0
        self._paused = False
        self._changed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pump = asyncio.get_running_loop().create_task(self._roll_out())
        self._pump.add_done_callback(lambda _: self._wake())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pump is not None
        self._pump.cancel()
        await asyncio.wait({self._pump})
        if not self._pump.cancelled():
            self._pump.exception()  # `take` has raised it, or nobody needs it.

    def take_up(self, begun: OpenGroups, version: int) -> None:
        """Go on at ``version`` with the groups that a run had begun; called before the rollout begins.

        Whole groups are there to be taken. Of others the episodes that are missing come first, and then the groups of
        which there is none, in the order of their ordinals.
        """
        self._buffer.served(version)
        self._attempts.update(begun.dropped)
        for ordinal in range(begun.next):
            episodes = begun.episodes.get(ordinal, ())
            if ordinal in begun.taken:
                continue
            if not episodes:
                self._again.append(ordinal)
                continue
            group = Group(episodes[0].key.task, episodes)
            oldest = group.oldest_version
            self._buffer.start(ordinal, oldest=version if oldest is None else oldest)
            self._rolling += 1
            if replace(self._request(ordinal), kept=episodes).missing:
                self._kept[ordinal] = episodes
            else:
                self._finish(group)
        self._order.cursor = begun.next

    async def take(self) -> Taken:
        """Wait for the groups of the step at the present version, and take them.

        Raises what stops the rollout, such as the ``RunError`` of a failure budget that is spent.
        """
        while (taken := self._buffer.take()) is None:
            await self._change()
        for group in taken.stale:
            self._attempts[group.ordinal] += 1
            self._again.append(group.ordinal)
        self._wake()
        episodes = [episode for group in (*taken.groups, *taken.left_out) for episode in group.episodes]
        failed = sum(episode.failure is not None for episode in episodes)
        self._dispatcher.budget.conclude(len(episodes), failed)
        return taken

    def served(self, version: int) -> None:
        """The step is over and the engine serves ``version``: the slots of the step's groups are free."""
        self._buffer.served(version)
        self._wake()

    @property
    def cursor(self) -> int:
        """The first position of the task order whose group no step has taken for good."""
        return min((*self._buffer.outstanding, *self._again), default=self._order.cursor)

    def pause(self) -> None:
        """From now on no group starts, until ``resume``."""
        self._paused = True
        self._wake()  # The time until then is not the learner's.

    def resume(self) -> None:
        """Let groups start again."""
        self._paused = False
        self._wake()

    async def at_rest(self) -> None:
        """Wait until nothing is in flight, which comes only after ``pause``. Raises as ``take`` does."""
        while self._rolling:
            await self._change()

    def counts(self) -> dict[str, float]:
        """How many of the episodes that have started were held back by the engine's line, and for how long."""
        admission = self._dispatcher.admission
        return {} if admission is None else admission.take()

    async def _roll_out(self) -> None:
        async with contextlib.aclosing(self._dispatcher.dispatch(self._requests())) as groups:
            async for group in groups:
                self._finish(group)

    async def _requests(self) -> AsyncGenerator[GroupRequest, None]:
        """The groups to roll out, each as soon as it is admitted; without end."""
        while True:
            if self._kept:
                ordinal = min(self._kept)
                yield replace(self._request(ordinal), kept=self._kept.pop(ordinal))
                continue
            while not self._admits():
                with contextlib.nullcontext() if self._paused else self._stopwatch.time("held"):
                    await self._change()
            ordinal = self._again.popleft() if self._again else self._order.advance()
            self._buffer.start(ordinal)
            self._rolling += 1
            yield self._request(ordinal)

    def _request(self, ordinal: int) -> GroupRequest:
        attempt = self._attempts[ordinal]
        request = group_request(self._config, self._order, ordinal, self._version, attempt=attempt)
        return replace(request, settings=partial(self._begin, request.settings))

    def _begin(self, settings: Callable[[EpisodeKey], SessionSettings], key: EpisodeKey) -> SessionSettings:
        """The ``settings`` of an episode, which are asked for when it starts."""
        self._started(key)
        return settings(key)

    def _version(self) -> int:
        return self._buffer.version

    def _admits(self) -> bool:
        steps_left = self._config.training.steps - self._buffer.version
        needed = steps_left * self._config.rollout.tasks_per_step
        return not self._paused and self._buffer.may_start() and len(self._buffer.outstanding) < needed

    def _finish(self, group: Group) -> None:
        self._rolling -= 1
        qualifies = not self._config.rollout.dynamic_sampling or self._qualifies(group)
        self._buffer.finish(group, group.oldest_version, qualifies)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        """Wait for the next change. Raises what has ended the rollout."""
        assert self._pump is not None
        if self._pump.done():
            self._pump.result()
        await self._changed.wait()
