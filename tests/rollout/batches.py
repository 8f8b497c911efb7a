"""Batches of real episodes in real workers, in which some agents go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.rollout.requests import requests_of

from agentrl.gateway import Gateway, SessionSettings
from agentrl.rollout.contract import Episode
from agentrl.rollout.dispatcher import Dispatcher, FailureBudget
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.subproc.executor import SubprocRunner
from agentrl.rollout.subproc.interpreter import AgentLaunch, worker_environment
from agentrl.rollout.subproc.process import WorkerLimits

AGENTS = Path(__file__).with_name("faulty_agents.py")
DEADLINE_S = 60.0
"""Of a whole scenario."""
QUICK = WorkerLimits(grace_s=0.5)


def process_of(reference: str, *, python: Path = Path(sys.executable), env: Sequence[str] = (), **kwargs: Any) -> Any:
    """What the worker of an agent is started from."""
    return AgentLaunch(reference, kwargs, python, worker_environment(env, os.environ))


@dataclass
class Batches:
    """Runs episodes against a gateway."""

    gateway: Gateway
    folder: Path
    warnings: list[str] = field(default_factory=list)

    def runner(
        self,
        agent: str | AgentLaunch,
        *,
        concurrency: int = 10,
        max_workers: int = 2,
        episodes_per_worker: int | None = None,
        limits: WorkerLimits = QUICK,
    ) -> SubprocRunner:
        """A runner of a reference, or of an agent of ``faulty_agents.py``."""
        if isinstance(agent, str):
            agent = process_of(agent if ":" in agent else f"{AGENTS}:{agent}")
        return SubprocRunner(
            agent,
            concurrency=concurrency,
            max_workers=max_workers,
            episodes_per_worker=episodes_per_worker,
            logs=self.folder / "logs",
            open_worker_endpoint=self.gateway.open_worker_endpoint,
            warn=self.warnings.append,
            limits=limits,
        )

    def run(
        self, agent: str | AgentLaunch, tasks: Sequence[Mapping[str, Any]], *, timeout_s: float = 30.0, **options: Any
    ) -> list[Episode]:
        """One episode of every task, all in one batch; in the order of the tasks."""

        async def scenario() -> list[Episode]:
            async with self.runner(agent, **options) as runner:
                return await self.episodes(runner, tasks, timeout_s=timeout_s)

        return asyncio.run(in_time(scenario()))

    async def episodes(
        self, runner: SubprocRunner, tasks: Sequence[Mapping[str, Any]], *, timeout_s: float = 30.0
    ) -> list[Episode]:
        """As ``run``, with a runner that has been entered."""

        async def finished(episode: Episode) -> None:
            pass

        dispatcher = Dispatcher(
            EpisodeRunner(runner, self.gateway.open_session, None, timeout_s, max_attempts=3),
            concurrency=len(tasks),
            budget=FailureBudget(1.0, len(tasks)),
            finished=finished,
        )
        settings = SessionSettings(training=True, max_tokens=16)
        rows = [{"folder": str(self.folder), **task} for task in tasks]
        groups = await dispatcher.collect(requests_of(rows, lambda key: settings))
        return [group.episodes[0] for group in groups]


async def in_time(scenario: Awaitable[Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await scenario


def left_over(folder: Path, before: Collection[psutil.Process]) -> list[psutil.Process]:
    """Processes that should have ended: our descendants, and those whose id an agent has written down."""
    ids = [int(path.suffix[1:]) for path in folder.glob("child.*")]
    written = []
    for pid in ids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                written.append(process)
    return written + [each for each in psutil.Process().children(recursive=True) if each not in before]


def only_fault(episodes: Sequence[Episode]) -> Episode:
    """The one episode that failed, all others being rewarded."""
    failed = [episode for episode in episodes if episode.outcome == "failed"]
    rewarded = [episode for episode in episodes if episode.outcome == "rewarded" and len(episode.calls) == 1]
    assert len(failed) == 1, [str(episode.failure) for episode in failed]
    assert len(rewarded) == len(episodes) - 1
    return failed[0]
