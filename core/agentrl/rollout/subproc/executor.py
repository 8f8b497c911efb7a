"""The executor ``subproc``: agents in worker processes, where they may block, crash and not be async at all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentrl.agents.contract import Data
from agentrl.errors import AgentRLError, ConfigError
from agentrl.machine import usable_processors
from agentrl.rollout.contract import Activity, AgentFacts, AgentRunner, AgentSpec, ExecutorContext, ProcessEndpoint
from agentrl.rollout.subproc.contract import Carrier
from agentrl.rollout.subproc.interpreter import AgentLaunch
from agentrl.rollout.subproc.local import LocalCarrier
from agentrl.rollout.subproc.pool import Pool
from agentrl.rollout.subproc.process import DEFAULT_LIMITS, WorkerLimits, WorkerProcess
from agentrl.rollout.subproc.worker import EpisodeMessage, WorkerStarter, load
from agentrl.worker.protocol import LONGEST, Message, encode, unfit

__all__ = ["SubprocExecutor", "SubprocRunner", "inspect_agent"]

_INSPECTION_S = 120.0
"""Seconds that an agent may take to be imported; a framework takes 10 seconds on a busy machine."""

_NOWHERE = "http://gateway.invalid/v1"
"""The base URL of an agent that is only inspected; clients require some URL."""


class SubprocExecutor:
    """Runs agents in worker processes, in this interpreter or in the agent's own."""

    runs_on_event_loop = False

    def __init__(self, agent: AgentSpec) -> None:
        """Raises ``ConfigError`` for an agent that another process cannot find, and for ``agent.env``."""
        self.launch = AgentLaunch.of(agent)

    async def inspect(self) -> AgentFacts:
        """Load the agent in a process of its own, which ends again; see ``Executor.inspect``."""
        return await inspect_agent(self.launch, deadline_s=_INSPECTION_S)

    def running(self, context: ExecutorContext) -> AbstractAsyncContextManager[AgentRunner]:
        """Start the first worker; further ones are started as they are needed. See ``Executor.running``."""
        return SubprocRunner(
            self.launch,
            concurrency=context.concurrency,
            max_workers=context.max_workers,
            episodes_per_worker=context.episodes_per_worker,
            logs=context.logs,
            open_worker_endpoint=context.open_worker_endpoint,
            warn=context.warn,
        )


class SubprocRunner:
    """Runs an agent's episodes in warm worker processes; an ``AgentRunner`` while it is entered.

    The first worker is started on entering, others as they are needed; leaving ends all of them. Where a worker dies,
    hangs or floods its output, the episode that is to blame fails, and the others in it raise ``WorkerError``.
    """

    def __init__(
        self,
        process: AgentLaunch,
        *,
        concurrency: int,
        max_workers: int | None,
        episodes_per_worker: int | None,
        logs: Path | None,
        open_worker_endpoint: Callable[[], ProcessEndpoint],
        warn: Callable[[str], None],
        limits: WorkerLimits = DEFAULT_LIMITS,
        carrier: Carrier | None = None,
    ) -> None:
        """``max_workers`` is by default one a CPU; ``episodes_per_worker`` 1 for an agent that is not async, and for
        others what ``concurrency`` leaves to each. ``logs`` is the folder of the run's logs. ``carrier`` starts the
        processes, by default on this machine."""
        self._concurrency = concurrency
        self._max_workers = max_workers or usable_processors()
        self._episodes_per_worker = episodes_per_worker
        self._limits = limits
        self._carrier = LocalCarrier(process) if carrier is None else carrier
        starter = WorkerStarter(process, logs, open_worker_endpoint, self._carrier, limits, warn)
        self._pool = Pool(starter.start, max_workers=self._max_workers, warn=warn)
        self._ids = itertools.count(1)
        self.facts = AgentFacts(is_async=True, returns_answer=False)
        """What is known of the agent; set on entering."""

    async def __aenter__(self) -> Self:
        """Start the first worker. Raises ``ConfigError`` or ``PluginError`` for an agent that cannot be run."""
        try:
            first = await self._pool.open()
        except BaseException:
            self._carrier.close()
            raise
        self.facts = first.facts
        self._pool.capacity = self._capacity()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._pool.close(self._limits.stop_s)
        finally:
            self._carrier.close()

    async def run(
        self,
        data: Data,
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        activity: Callable[[], Activity],
        alone: bool = False,
    ) -> Any:
        """See ``AgentRunner.run``; the deadline counts from when a worker has the episode.

        Raises ``ConfigError`` for ``data`` that JSON cannot carry.
        """
        message = self._message(data, connection)
        while True:
            worker = await self._pool.acquire(alone=alone)
            try:
                if worker.alive:
                    return await worker.run(message, deadline_s=deadline_s, activity=activity)
            finally:
                self._pool.release(worker)

    def resize(self, max_workers: int) -> None:
        """Have at most ``max_workers`` processes from now on, as where machines come or go; 0 has episodes wait.

        Processes beyond that go on; they are not replaced.
        """
        self._max_workers = max_workers
        if max_workers:
            self._pool.capacity = self._capacity()
        self._pool.resize(max_workers)

    def warm(self) -> None:
        """Start as many processes as there may be, before episodes need them."""
        self._pool.warm()

    def give_up(self, error: AgentRLError) -> None:
        """Start no more processes: episodes that wait for one, now or later, are given ``error``."""
        self._pool.give_up(error)

    def _capacity(self) -> int:
        if self._episodes_per_worker is not None:
            return self._episodes_per_worker
        return math.ceil(self._concurrency / self._max_workers) if self.facts.is_async else 1

    def _message(self, data: Data, connection: Mapping[str, Any]) -> EpisodeMessage:
        number = next(self._ids)
        given = {name: connection[name] for name in ("base_url", "api_key", "model")}
        line = _encoded({"type": "run", "id": number, "data": data, "connection": given}, data)
        return EpisodeMessage(number, line, connection["api_key"])


def _encoded(message: Message, data: Data) -> bytes:
    try:
        found = unfit(data, "data")
        line = b"" if found else encode(message)
    except RecursionError:
        found = "data, which is nested too deep"
    except (TypeError, ValueError) as error:
        found = f"data: {error}"
    if found:
        raise ConfigError(
            f"an agent in another process gets its task as JSON, which cannot carry {found}",
            fix="put plain JSON values into the task, or use rollout.mode=inline",
        )
    if len(line) > LONGEST:
        raise ConfigError(
            f"the task has {len(line)} bytes as JSON, and a process takes {LONGEST}", fix="make it smaller"
        )
    return line


async def inspect_agent(process: AgentLaunch, *, deadline_s: float) -> AgentFacts:
    """Load an agent in a process of its own, which ends again, and return what is known of it.

    Raises ``ConfigError`` or ``PluginError`` for one that cannot be run, or is not there after ``deadline_s`` seconds.
    """
    carrier = LocalCarrier(process)
    limits = WorkerLimits(start_s=deadline_s)
    try:
        started = WorkerProcess(await carrier.launch({}), log=None, limits=limits)
        facts = await load(started, process, _NOWHERE, "none", limits)
        await started.stop(limits.stop_s)
    finally:
        carrier.close()
    return facts
