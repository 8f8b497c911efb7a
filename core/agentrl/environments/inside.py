"""What runs once in a new environment: what its recipe says, and whether its agents can be imported there.

Needs nothing but agentrl-core's base dependencies.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agentrl.errors import AgentRLError
from agentrl.plugins import Plugins
from agentrl.plugins.entries import Entry, normalised
from agentrl.plugins.versions import CORE

__all__ = ["Fault", "report", "tell_recipe"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A plugin that does not load in its environment."""

    name: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution}): {self.reason}"


def report(path: Path) -> None:
    """Write what does not load to ``path``, as a JSON list of faults."""
    plugins = Plugins(environ={})
    plugins.load()
    faults = [Fault(broken.name, str(broken.distribution), broken.reason) for broken in plugins.broken]
    agents = [entry for entry in plugins.entries("agents") if normalised(entry.distribution.name) != CORE]
    faults += [fault for entry in agents if (fault := _fault(plugins, entry))]
    path.write_text(json.dumps([asdict(fault) for fault in faults]), encoding="utf-8")


def tell_recipe(name: str, path: Path) -> None:
    """Write the recipe ``name`` to ``path``, as a JSON object. Raises ``PluginError`` where it is none."""
    from agentrl.environments.recipes import recipe_here

    recipe = recipe_here(name, Plugins(environ={}))
    path.write_text(json.dumps(asdict(recipe) if recipe else None), encoding="utf-8")


def _fault(plugins: Plugins, entry: Entry) -> Fault | None:
    try:
        plugins.get("agents", entry.qualified)
    except AgentRLError as error:
        return Fault(entry.name, str(entry.distribution), str(error))
    return None
