"""What runs once in a new environment: what its recipe says, and whether its agents can be imported there.

Needs nothing but agentrl-core's base dependencies.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from agentrl.errors import AgentRLError
from agentrl.plugins import Plugins
from agentrl.plugins.entries import CORE, Broken, Distribution, Entry, normalised

__all__ = ["read_report", "report", "tell_recipe"]


def report(path: Path) -> None:
    """Write what does not load to ``path``, as JSON that ``read_report`` takes."""
    plugins = Plugins(environ={})
    plugins.load()
    agents = [entry for entry in plugins.entries("agents") if normalised(entry.distribution.name) != CORE]
    faults = [*plugins.broken, *(fault for entry in agents if (fault := _fault(plugins, entry)))]
    rows = [(fault.name, fault.distribution.name, fault.distribution.version, fault.reason) for fault in faults]
    path.write_text(json.dumps(rows), encoding="utf-8")


def read_report(path: Path) -> list[Broken]:
    """What ``report`` has written."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Broken(name, Distribution(project, version), reason) for name, project, version, reason in rows]


def tell_recipe(name: str, path: Path) -> None:
    """Write the recipe ``name`` to ``path``, as a JSON object. Raises ``PluginError`` where it is none."""
    from agentrl.environments.recipes import recipe_here

    recipe = recipe_here(name, Plugins(environ={}))
    path.write_text(json.dumps(asdict(recipe) if recipe else None), encoding="utf-8")


def _fault(plugins: Plugins, entry: Entry) -> Broken | None:
    try:
        plugins.get("agents", entry.qualified)
    except AgentRLError as error:
        return Broken(entry.name, entry.distribution, str(error))
    return None
