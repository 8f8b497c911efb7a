"""How ``agentrl env list`` shows the environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrl.cli.output import broken_json
from agentrl.environments.environment import Environment
from agentrl.plugins.versions import CORE, core_version

__all__ = ["as_columns", "notes", "summary", "to_json"]


def as_columns(environment: Environment) -> tuple[str, ...]:
    """One line of the table."""
    return (
        environment.name,
        f"Python {environment.record.python_version}",
        f"{CORE} {environment.core}",
        ", ".join(map(str, environment.plugins)) or "no plugin",
        ", ".join(entry.name for entry in environment.entries("agents")) or "no agent",
        str(environment.path),
    )


def summary(made: Environment) -> Iterator[str]:
    """What a new environment holds, where it is, and how its agents are trained."""
    held = [*map(str, made.plugins)] or [*made.record.sources] or ["no plugin"]
    yield f"{made.name}: {', '.join(held)} in {made.path}"
    if agents := [entry.name for entry in made.entries("agents")]:
        yield f"train: agentrl train {' or '.join(agents)}"
    elif not made.plugins:
        yield f"train: agentrl train my_agent.py:MyAgent agent.python={made.name}"


def notes(known: Sequence[Environment], unfinished: Sequence[Path]) -> Iterator[str]:
    """What is wrong with an environment, and the command that mends it."""
    for environment in known:
        if environment.fault:
            yield f"broken: {environment.name}: {environment.fault} ({environment.remedy})"
        elif environment.core != core_version():
            versions = f"{CORE} {environment.core} and this is {core_version()}"
            yield f"outdated: {environment.name} has {versions} ({environment.remedy})"
        for plugin in environment.broken:
            yield f"broken: {plugin} in environment {environment.name}"
    for folder in unfinished:
        yield f"incomplete: {folder} (agentrl env create {folder.name}, or agentrl env remove {folder.name})"


def to_json(known: Sequence[Environment], unfinished: Sequence[Path]) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "core": core_version(),
        "environments": [_environment_json(environment) for environment in known],
        "incomplete": [{"name": folder.name, "path": str(folder)} for folder in unfinished],
    }


def _environment_json(environment: Environment) -> dict[str, Any]:
    return {
        "name": environment.name,
        "path": str(environment.path),
        "python": str(environment.python),
        "python_version": environment.record.python_version,
        "core": environment.core,
        "is_current": environment.core == core_version(),
        "fault": environment.fault,
        "plugins": [{"name": each.name, "version": each.version} for each in environment.plugins],
        "agents": [entry.name for entry in environment.entries("agents")],
        "broken": broken_json(environment.broken),
        "from": list(environment.record.sources),
        "editable": environment.record.editable,
        "created": environment.record.created,
    }
