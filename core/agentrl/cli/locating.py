"""An agent of another environment, as part of the plan that a command line shows and checks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.config.loader import Resolved
    from agentrl.plugins.manager import Plugins

__all__ = ["located"]


def located(resolved: Resolved, plugins: Plugins) -> Resolved:
    """``resolved`` with the interpreter of an agent that is known in an environment alone, and where it was found.

    Raises as ``agentrl.environments.locate_agent`` does.
    """
    from agentrl.environments import environment_of, locate_agent

    config = locate_agent(resolved.config, plugins)
    if config is resolved.config or config.agent.python is None:
        return resolved
    environment = environment_of(config.agent.python)
    place = f"environment {environment.name}" if environment else "environment"
    return replace(resolved, config=config, provenance={**resolved.provenance, "agent.python": place})
