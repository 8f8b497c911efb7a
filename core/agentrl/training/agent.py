"""The agent of a run, wherever its code runs: as coroutines here, or in worker processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agentrl.agents.binding import BoundAgent, bind_agent, reference_of
from agentrl.agents.watchdog import LoopWatchdog
from agentrl.clients import reach_loopback_directly
from agentrl.config.models import Config
from agentrl.environments import environments
from agentrl.errors import AgentRLError, ConfigError
from agentrl.gateway import Gateway
from agentrl.plugins import Plugins
from agentrl.rollout.contract import AgentRunner
from agentrl.rollout.inline import InlineRunner
from agentrl.rollout.subproc.runner import AgentFacts, AgentProcess, SubprocRunner, inspect_agent, worker_environment
from agentrl.training.interrupts import run_to_end
from agentrl.training.watching import rollout_watchdog

__all__ = ["Agent", "Place", "resolve_agent"]

_INSPECTION_S = 120.0
"""How long an agent may take to be imported; a framework takes 10 seconds on a busy machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """What an agent's code is run beside."""

    gateway: Gateway
    config: Config
    logs: Path | None
    """The folder for what the agent prints where it has processes of its own; ``None`` keeps nothing."""
    warn: Callable[[str], None]


class Agent(Protocol):
    """An agent that has been found, and can be run."""

    @property
    def returns_answer(self) -> bool:
        """Whether it never returns a reward, only what a reward function can score."""
        ...

    def running(self, place: Place) -> contextlib.AbstractAsyncContextManager[AgentRunner]:
        """Make it ready to run episodes; on leaving, nothing of it is left."""
        ...


@dataclass(frozen=True, slots=True)
class InlineAgent:
    """An agent of this interpreter, run on its event loop."""

    bound: BoundAgent

    @property
    def returns_answer(self) -> bool:
        """See ``Agent``."""
        return self.bound.returns_answer

    @contextlib.asynccontextmanager
    async def running(self, place: Place) -> AsyncIterator[AgentRunner]:
        """See ``Agent``: the event loop is watched, which an agent might block."""
        async with _watchdog(place, self.bound.name):
            runner = InlineRunner(self.bound, place.warn)
            yield runner
            runner.tell()


@dataclass(frozen=True, slots=True)
class WorkerAgent:
    """An agent in processes of its own."""

    process: AgentProcess
    facts: AgentFacts

    @property
    def returns_answer(self) -> bool:
        """See ``Agent``."""
        return self.facts.returns_answer

    @contextlib.asynccontextmanager
    async def running(self, place: Place) -> AsyncIterator[AgentRunner]:
        """See ``Agent``: the event loop is watched, which a reward might block."""
        rollout = place.config.rollout
        runner = SubprocRunner(
            self.process,
            concurrency=rollout.concurrency,
            max_workers=rollout.max_workers,
            episodes_per_worker=rollout.episodes_per_worker,
            logs=place.logs,
            open_worker_endpoint=place.gateway.open_worker_endpoint,
            warn=place.warn,
        )
        async with _watchdog(place), runner:
            yield runner


def _watchdog(place: Place, agent: str | None = None) -> LoopWatchdog:
    return rollout_watchdog(agent, place.warn, deadline=place.config.rollout.episode_timeout)


def resolve_agent(config: Config, plugins: Plugins, given: Any = None) -> Agent:
    """Find the agent that ``config`` names, or take the one that is ``given``, where its code is going to run.

    Raises ``ConfigError`` or ``PluginError`` where there is none, it does not load, or it cannot be run there.
    """
    reach_loopback_directly()  # A client that the agent's module makes when it is imported is made below.
    agent: Agent = _in_workers(config, plugins, given) if config.runs_in_workers else _inline(config, plugins, given)
    if agent.returns_answer and config.reward is None:
        raise ConfigError(
            f"agent {config.agent.name!r} returns an answer, and no reward is set to score it",
            fix="set reward= to one of `agentrl list-rewards`, pkg.mod:Obj or file.py:Obj",
        )
    return agent


def _inline(config: Config, plugins: Plugins, given: Any) -> InlineAgent:
    target = _found(config.agent.name, plugins) if given is None else given
    agent, outcomes = plugins.adapt_agent(target), config.agent.outcomes
    return InlineAgent(bind_agent(agent, config.agent.kwargs, name=config.agent.name, outcomes=outcomes))


def _found(reference: str, plugins: Plugins) -> Any:
    """What ``reference`` means here; code that needs what is not installed here may belong into an environment."""
    try:
        return plugins.get("agents", reference)
    except AgentRLError as error:
        names = [environment.name for environment in environments()]
        if not names or not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        choices = " or ".join(f"agent.python={name}" for name in names)
        raise type(error)(
            error.message, fix=f"{error.fix}, or run it in an environment: {choices}"
        ) from error.__cause__


def _in_workers(config: Config, plugins: Plugins, given: Any) -> WorkerAgent:
    reference = config.agent.name if given is None else reference_of(given)
    if given is not None and ":" not in reference:
        raise ConfigError(
            f"{reference!r} cannot be found by another process: it is no class or function at the top of a module",
            fix="pass one that is, or its reference pkg.mod:Obj or file.py:Obj, or use rollout.mode=inline",
        )
    python = Path(sys.executable) if config.agent.python is None else Path(os.path.expanduser(config.agent.python))
    process = AgentProcess(
        reference=reference,
        kwargs=config.agent.kwargs,
        python=python,
        env=worker_environment(config.agent.env, os.environ, python=python),
        disabled=plugins.disabled,
        outcomes=tuple(config.agent.outcomes),
    )
    return WorkerAgent(process, run_to_end(lambda: inspect_agent(process, deadline_s=_INSPECTION_S)))
