"""Finding the interpreter that runs an agent which a config names."""

from __future__ import annotations

from pathlib import Path

from agentrl.config.models import Config
from agentrl.environments.environment import Environment, environments
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.plugins.references import NameReference, parse_reference

__all__ = ["locate_agent"]


def locate_agent(config: Config, plugins: Plugins) -> Config:
    """``config`` with ``agent.python`` set to the interpreter of the environment that holds the agent, if one does.

    Where ``agent.python`` is set, it decides; the name of an environment in it becomes that environment's interpreter.
    Otherwise an agent that is installed here, and any reference to code, stays here. Only for a name that is not known
    here are the environments searched; one that nobody knows is left to whoever loads the agent.

    Raises ``PluginError`` where several environments have an agent of that name, or the only one is damaged, and
    ``ConfigError`` where ``rollout.mode=inline`` contradicts an interpreter of the agent's own.
    """
    if config.is_online:
        return config
    if config.agent.python is not None:
        _refuse_inline(config, f"agent.python={config.agent.python}")
        return _in(_named(config.agent.python), config)
    found = [] if _is_known_here(config.agent.name, plugins) else _having(config.agent.name, plugins)
    if not found:
        return config
    environment = _only(config.agent.name, found)
    _refuse_inline(config, f"agent {config.agent.name!r}, which is in the environment {environment.name!r},")
    return _in(environment, config)


def _in(environment: Environment | None, config: Config) -> Config:
    if environment is None:
        return config
    agent = config.agent.model_copy(update={"python": environment.python})
    return config.model_copy(update={"agent": agent})


def _named(python: Path) -> Environment | None:
    """The environment that ``python`` is the name of."""
    return next((known for known in environments() if str(python) == known.name), None)


def _is_known_here(name: str, plugins: Plugins) -> bool:
    """Whether ``name`` is a reference to code, or that of an agent which can be used here."""
    if not isinstance(parse_reference(name), NameReference):
        return True
    plugins.load()
    return any(entry.is_called(name) for entry in plugins.entries("agents"))


def _having(name: str, plugins: Plugins) -> list[Environment]:
    def has(environment: Environment) -> bool:
        agents = environment.entries("agents")
        return any(entry.is_called(name) and plugins.disabled_by(entry) is None for entry in agents)

    return [environment for environment in environments() if has(environment)]


def _only(name: str, found: list[Environment]) -> Environment:
    usable = [environment for environment in found if environment.fault is None]
    if not usable:
        broken = found[0]
        raise PluginError(
            f"agent {name!r} is in the environment {broken.name!r}, which cannot be used: {broken.fault}",
            fix=broken.remedy,
        )
    if len(usable) > 1:
        names = " and ".join(environment.name for environment in usable)
        choices = " or ".join(f"agent.python={environment.python}" for environment in usable)
        raise PluginError(f"agent {name!r} is in the environments {names}", fix=f"set {choices}")
    return usable[0]


def _refuse_inline(config: Config, what: str) -> None:
    if config.rollout.mode.name == "inline":
        raise ConfigError(
            f"rollout.mode=inline runs agents in this interpreter, and {what} needs another",
            fix="set rollout.mode=subproc, or leave it out",
        )
