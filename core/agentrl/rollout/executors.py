"""Which executor runs the agent of a config: the one that ``rollout.mode`` names, or an automatic choice."""

from __future__ import annotations

from functools import partial
from typing import Any

from agentrl.agents.binding import bind_agent, reference_of
from agentrl.agents.contract import LoadedAgent
from agentrl.config.models import Config
from agentrl.config.section import PartModel
from agentrl.environments import environments
from agentrl.errors import AgentRLError
from agentrl.plugins import Plugins
from agentrl.rollout.contract import AgentSpec, Executor

__all__ = ["auto_executor", "build_executor"]


def build_executor(config: Config, plugins: Plugins, given: Any = None) -> Executor:
    """The executor that ``config`` names, for the agent that it names, or for the agent object that is ``given``.

    Raises ``ConfigError`` or ``PluginError`` for a name that stands for nothing, and for an agent that the executor
    cannot run.
    """
    agent, name = config.agent, config.agent.name
    reference = name if given is None else reference_of(given)
    spec = AgentSpec(
        name=reference,
        reference=reference if given is None or ":" in reference else None,
        load=partial(_load, config, plugins, given),
        kwargs=agent.kwargs,
        python=agent.python,
        env=tuple(agent.env),
        outcomes=tuple(agent.outcomes),
        disabled=plugins.disabled,
    )
    executor: Executor = plugins.build("executors", config.rollout.mode, agent=spec, config=config, plugins=plugins)
    return executor


def auto_executor(agent: AgentSpec, config: Config, plugins: Plugins) -> Executor:
    """The executor that the scheduler chooses, else ``inline``, or ``subproc`` for an agent with an interpreter."""
    chosen = _of_scheduler(config, plugins)
    if chosen is not None:
        executor: Executor = plugins.build("executors", chosen, agent=agent, config=config, plugins=plugins)
        return executor
    if agent.python is None:
        from agentrl.rollout.inline import InlineExecutor

        return InlineExecutor(agent)
    from agentrl.rollout.subproc.executor import SubprocExecutor

    return SubprocExecutor(agent)


def _of_scheduler(config: Config, plugins: Plugins) -> PartModel | None:
    if config.scheduler == type(config).model_fields["scheduler"].default:
        return None
    choose = getattr(plugins.get("schedulers", config.scheduler.name), "executor", None)
    name = None if choose is None else choose(config)
    return None if name is None else PartModel(name=name)


def _load(config: Config, plugins: Plugins, given: Any) -> LoadedAgent:
    agent = config.agent
    target = _found(agent.name, plugins) if given is None else given
    return bind_agent(plugins.adapt_agent(target), agent.kwargs, name=agent.name, outcomes=agent.outcomes)


def _found(reference: str, plugins: Plugins) -> Any:
    """What ``reference`` names here. The error for code that lacks a module suggests the environments there are."""
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
