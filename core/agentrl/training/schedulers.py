"""Where a run takes place: `scheduler` in the config names one of the entry points ``agentrl.schedulers``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agentrl.config.models import Config
from agentrl.errors import AgentRLError, ConfigError
from agentrl.hosting.contract import Hosts, Scheduler
from agentrl.plugins import Plugins
from agentrl.plugins.references import FileReference, parse_reference
from agentrl.reporting.contract import Reporter

if TYPE_CHECKING:
    from agentrl.training.hosting import Hosting

__all__ = ["LocalScheduler", "build_scheduler", "hosting_of"]

Result = TypeVar("Result")


class LocalScheduler:
    """Trains in this process; with ``training.processes`` above 1 the model is in others of this machine."""

    def __init__(self, config: Config) -> None:
        self._starts = config.training.processes > 1
        self.hosts: Hosts | None = None
        """See ``PlacingScheduler``."""

    def run(self, train: Callable[[], Result]) -> Result:
        """Call ``train`` here and return what it returns."""
        if not self._starts:
            return train()
        from agentrl.hosting.local import LocalHosts  # No run of one process needs them.

        self.hosts = LocalHosts()
        try:
            return train()
        finally:
            self.hosts = None


def build_scheduler(plugins: Plugins, config: Config, reporter: Reporter, model_folder: Path) -> Scheduler:
    """The scheduler that ``config`` names, for a run of the model in ``model_folder``.

    Raises ``ConfigError`` or ``PluginError`` for a name that stands for nothing, for keys that it does not take, for
    an object that has no ``run``, and for processes that it does not start or that this machine has no place for.
    """
    part = config.scheduler
    shared = _shared(config, model_folder)
    scheduler: Scheduler = plugins.build("schedulers", part, config=config, reporter=reporter, shared=shared)
    if not callable(getattr(scheduler, "run", None)):
        raise ConfigError(
            f"scheduler {part.type!r} is a {type(scheduler).__name__}, which has no `run`",
            fix="a scheduler has `run(self, train)`, which calls train() where the run is to be",
        )
    if config.training.processes > 1:
        from agentrl.training.placement import check_placement

        check_placement(config, starts=hasattr(scheduler, "hosts"))
    return scheduler


def hosting_of(scheduler: Scheduler, restarts: int = 0) -> Hosting | None:
    """The hosts that ``scheduler`` has while its ``run`` lasts, for one run; ``None`` without any.

    ``restarts`` is how often the run may go on by itself where it loses one of them.
    """
    hosts: Hosts | None = getattr(scheduler, "hosts", None)
    if hosts is None:
        return None
    from agentrl.training.hosting import Hosting

    return Hosting(hosts, restarts)


def _shared(config: Config, model_folder: Path) -> Mapping[str, Path]:
    """The paths that the run's processes need wherever they are, by configuration key."""
    shared = {"run.dir": Path(os.path.expanduser(config.run.dir)), "model.name": model_folder}
    try:
        agent = parse_reference(config.agent.name)
    except AgentRLError:
        return shared  # An object that was passed, or a name that is refused elsewhere.
    if isinstance(agent, FileReference):
        shared["agent.name"] = Path(agent.path)
    return shared
