"""Environments: interpreters in which plugins live that cannot be installed beside the others.

``agentrl env create camel`` makes one: a virtual environment with agentrl-core and the plugin, in the folder that
``AGENTRL_ENVIRONMENTS`` names or in the user's data folder. ``environments`` lists those that exist, and
``locate_agent`` finds the one that holds the agent which a config names; neither starts an interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl._lazy import attributes

if TYPE_CHECKING:
    from agentrl.environments.contract import Recipe
    from agentrl.environments.environment import (
        Environment,
        entries_elsewhere,
        environment_of,
        environments,
        environments_folder,
        find_environment,
        incomplete,
    )
    from agentrl.environments.locating import locate_agent

__all__ = [
    "Environment",
    "Recipe",
    "entries_elsewhere",
    "environment_of",
    "environments",
    "environments_folder",
    "find_environment",
    "incomplete",
    "locate_agent",
]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "agentrl.environments.contract": ["Recipe"],
        "agentrl.environments.environment": [
            "Environment",
            "entries_elsewhere",
            "environment_of",
            "environments",
            "environments_folder",
            "find_environment",
            "incomplete",
        ],
        "agentrl.environments.locating": ["locate_agent"],
    },
)
