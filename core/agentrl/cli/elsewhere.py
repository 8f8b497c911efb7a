"""The agents of known environments, with where their source is."""

from __future__ import annotations

from agentrl.environments.known import environments
from agentrl.plugins.entries import Entry
from agentrl.plugins.source import Sources

__all__ = ["agents_elsewhere"]


def agents_elsewhere() -> tuple[tuple[Entry, Sources], ...]:
    """Every agent that is installed in an environment that works."""
    return tuple(
        (entry, Sources(known.site_packages))
        for known in environments()
        if known.fault is None
        for entry in known.entries("agents")
    )
