"""The name of a model that an endpoint serves, which may be said in two places."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.config.loader import Resolved
    from agentrl.plugins.manager import Plugins

__all__ = ["named"]

_KEYS = ("model.name", "inference.backend.model")
_HERE = "command line"


def named(resolved: Resolved, plugins: Plugins) -> Resolved:
    """``resolved`` with one name for the model: a chat backend's own key, unless only the other is from here.

    Raises ``ConfigError`` where the command line has both, where nobody has named one, and for the name of an agent.
    """
    from agentrl.errors import ConfigError
    from agentrl.training.backends import is_chat
    from agentrl.training.endpoint import named_by_endpoint

    if not is_chat(resolved.config, plugins):
        return resolved
    _refuse_nobody_s_choice(resolved)
    _refuse_agent(resolved, plugins)
    config = named_by_endpoint(resolved.config)
    of_model, of_backend = (resolved.provenance.get(key) == _HERE for key in _KEYS)
    given = resolved.config.model
    if of_model and of_backend and given.name != config.model.name:
        raise ConfigError(
            f"the model is named twice, as {given.name!r} and by inference.backend.model={config.model.name!r}",
            fix="leave one of them out",
        )
    return replace(resolved, config=config.model_copy(update={"model": given}) if of_model else config)


def _refuse_nobody_s_choice(resolved: Resolved) -> None:
    from agentrl.errors import ConfigError

    if all(resolved.provenance.get(key, "default") == "default" for key in _KEYS):
        raise ConfigError(
            "nothing says which of the endpoint's models to measure",
            fix="name the endpoint's model: agentrl eval MODEL, or inference.backend.model=MODEL",
        )


def _refuse_agent(resolved: Resolved, plugins: Plugins) -> None:
    """An agent's name where the model's belongs, as ``agentrl train`` takes it."""
    from agentrl.environments import entries_elsewhere
    from agentrl.errors import ConfigError

    name = resolved.config.model.name
    if resolved.provenance.get("model.name") != _HERE:
        return
    plugins.load()
    if any(agent.kind == "agents" and agent.is_called(name) for agent in (*plugins.installed, *entries_elsewhere())):
        raise ConfigError(
            f"{name!r} is an agent, and stands where the endpoint's model is named",
            fix=f"did you mean agent={name}? A model that is called so is inference.backend.model={name}",
        )
