"""The kinds of parts that a plugin can provide: each has an entry-point group, ``agentrl.<kind>``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HOOKS", "KINDS", "Kind"]


class Kind(NamedTuple):
    """How messages speak of a kind."""

    noun: str
    """One of them: ``agent``."""
    key: str
    """The configuration key that names one."""


class _Kinds(dict[str, Kind]):
    def __missing__(self, name: str) -> Kind:
        """A kind that core does not use: a plugin may let others extend it."""
        return Kind(name.removesuffix("s"), name)


KINDS = _Kinds(
    {
        "agents": Kind("agent", "agent"),
        "rewards": Kind("reward", "reward"),
        "backends": Kind("backend", "inference.backend"),
        "models": Kind("model", "model"),
        "tasks": Kind("task set", "tasks"),
        "algorithms": Kind("algorithm", "algorithm"),
        "parts": Kind("algorithm part", "algorithm.<slot>"),
        "dialects": Kind("dialect", "dialect"),
        "normalisers": Kind("normaliser", "gateway.normalise"),
        "trackers": Kind("tracker", "trackers"),
        "schedulers": Kind("scheduler", "scheduler"),
        "executors": Kind("executor", "rollout.mode"),
        "commands": Kind("command", "command"),
        "environments": Kind("recipe", "agentrl env create"),
    }
)
"""The kinds that core uses, by entry-point group without its ``agentrl.``. A new kind is a line here."""

HOOKS = "plugins"
"""The group whose entries implement hooks instead of naming an object."""
