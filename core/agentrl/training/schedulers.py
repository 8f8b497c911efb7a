"""Where a run takes place: `scheduler` in the config names one of the entry points ``agentrl.schedulers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentrl.config.models import Config
from agentrl.errors import ConfigError
from agentrl.plugins import Plugins
from agentrl.runs.contract import Summary

__all__ = ["LocalScheduler", "Scheduler", "build_scheduler"]


class Scheduler(Protocol):
    """What a scheduler is, built with its own keys and, if its signature takes it, ``config``."""

    def run(self, train: Callable[[], Summary]) -> Summary:
        """Call ``train`` where the run is to take place, and return what it returns; what it raises passes."""
        ...

    # One that starts processes has `hosts`, an `agentrl.hosting.contract.Hosts`, while `run` lasts.


class LocalScheduler:
    """Trains in this process."""

    def run(self, train: Callable[[], Summary]) -> Summary:
        """Call ``train`` here and return its summary."""
        return train()


def build_scheduler(plugins: Plugins, config: Config) -> Scheduler:
    """The scheduler that ``config`` names.

    Raises ``ConfigError`` or ``PluginError`` for a name that stands for nothing, for keys that it does not take, and
    for an object that has no ``run``.
    """
    part = config.scheduler
    scheduler: Scheduler = plugins.build("schedulers", part, config=config)
    if not callable(getattr(scheduler, "run", None)):
        raise ConfigError(
            f"scheduler {part.type!r} is a {type(scheduler).__name__}, which has no `run`",
            fix="a scheduler has `run(self, train)`, which calls train() where the run is to be",
        )
    return scheduler
