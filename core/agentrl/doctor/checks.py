"""The sections of an examination, in their order."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, NamedTuple

__all__ = ["ALONE", "SERVED", "Check"]

Deadline = Literal["inference.timeout", "rollout.episode_timeout"]


class Check(NamedTuple):
    """The examination of one section."""

    section: str
    doing: str
    """What it begins with, in words."""
    target: str
    """``module:function`` in this package, imported when its turn comes: what it imports may be what is missing."""
    needs: tuple[str, ...] = ()
    """Sections without which it makes no sense."""
    deadline: Deadline = "inference.timeout"
    """The key that says how long it may keep everything else from running."""

    @property
    def function(self) -> Any:
        """Takes the ``Case`` and yields findings."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"agentrl.doctor.{module}"), name)


ALONE = (
    Check("versions", "reading what is installed", "versions:versions"),
    Check("plugins", "importing every plugin", "plugins:plugins"),
    Check("model", "loading the tokenizer", "model:model", ("versions",)),
    Check("machine", "looking at the machine", "machine:machine"),
    Check("config", "resolving names", "settings:settings", ("versions", "plugins", "model")),
    Check("learner", "loading the model", "learner:learner", ("machine", "config")),
)
"""Those that come before anything is started; their functions are generators."""

SERVED = (
    Check("engine", "starting the inference engine", "engine:engine", ("learner",)),
    Check("agent", "running one episode", "agent:agent", ("engine",), "rollout.episode_timeout"),
    Check("group", "running groups of episodes", "group:group", ("agent",), "rollout.episode_timeout"),
    Check("step", "learning from the episodes", "step:step", ("group",)),
)
"""Those that run while the engine and the gateway do; their functions are asynchronous generators."""
