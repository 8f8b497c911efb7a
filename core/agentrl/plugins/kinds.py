"""What a plugin can provide: one kind an entry-point group, ``agentrl.<kind>``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HOOKS", "KINDS", "Kind", "kind"]


class Kind(NamedTuple):
    """How messages speak of a kind."""

    noun: str
    """One of them: ``agent``."""
    key: str
    """The configuration key that names one."""


KINDS = {
    "agents": Kind("agent", "agent"),
    "rewards": Kind("reward", "reward"),
    "backends": Kind("backend", "inference.backend"),
    "models": Kind("model", "model"),
    "tasks": Kind("task set", "tasks"),
    "algorithms": Kind("algorithm", "algorithm"),
    "trackers": Kind("tracker", "trackers"),
    "schedulers": Kind("scheduler", "scheduler"),
    "commands": Kind("command", "command"),
    "environments": Kind("recipe", "agentrl env create"),
}
"""The kinds that core uses, by entry-point group without its ``agentrl.``."""

HOOKS = "plugins"
"""The group whose entries implement hooks instead of naming an object."""


def kind(name: str) -> Kind:
    """The kind called ``name``; a plugin that is extended by others may have kinds of its own."""
    return KINDS.get(name) or Kind(name.removesuffix("s"), name)
