"""Where a run is placed: ``scheduler`` in the config, this process unless a plugin brings another place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentrl.config.models import Config
from agentrl.errors import ConfigError, near_matches
from agentrl.plugins import Plugins
from agentrl.runs.summary import Summary

__all__ = ["Scheduler", "build_scheduler"]

_LOCAL = "local"


class Scheduler(Protocol):
    """What the entry points of ``agentrl.schedulers`` name, built with its keys and, if it takes it, ``config``."""

    def run(self, train: Callable[[], Summary]) -> Summary:
        """Call ``train`` once where the run is to be, and return what it returns; what it raises passes."""
        ...


class _Here:
    """This process."""

    def run(self, train: Callable[[], Summary]) -> Summary:
        return train()


def build_scheduler(plugins: Plugins, config: Config) -> Scheduler:
    """The scheduler that ``config`` names. Raises ``ConfigError`` or ``PluginError`` where it stands for nothing."""
    part = config.scheduler
    if part.type == _LOCAL and not part.options:
        return _Here()
    if part.type == _LOCAL:
        raise ConfigError(f"there is no key 'scheduler.{min(part.options)}'", fix="`local` takes none")
    if not plugins.has("schedulers", part.type) and not any(mark in part.type for mark in ".:/"):
        known = {_LOCAL, *(entry.name for entry in plugins.entries("schedulers"))}
        raise ConfigError(f"there is no scheduler {part.type!r}", fix=near_matches(part.type, known))
    scheduler: Scheduler = plugins.build("schedulers", part, config=config)
    if not callable(getattr(scheduler, "run", None)):
        raise ConfigError(
            f"scheduler {part.type!r} is a {type(scheduler).__name__}, which has no `run`",
            fix="a scheduler has `run(self, train)`, which calls train() where the run is to be",
        )
    return scheduler
