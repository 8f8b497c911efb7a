"""Which plugins a config names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentrl.config.models import Config
from agentrl.plugins.entries import Broken, Distribution, Entry
from agentrl.plugins.manager import Plugins

__all__ = ["Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a config uses of what is installed."""

    references: frozenset[tuple[str, str]]
    """Kind and name, as the config writes it."""
    entries: tuple[Entry, ...]
    """The entries that may be meant."""

    @classmethod
    def of(cls, config: Config, plugins: Plugins) -> Usage:
        """What ``config`` uses of ``plugins``; an agent with an interpreter of its own is looked up there."""
        references = frozenset(_references(config))
        entries = (entry for entry in plugins.installed if plugins.disabled_by(entry) is None)
        named = (entry for entry in entries if any(k == entry.kind and entry.is_called(n) for k, n in references))
        return cls(references, tuple(named))

    @property
    def distributions(self) -> frozenset[Distribution]:
        """The distributions that they come from."""
        return frozenset(entry.distribution for entry in self.entries)

    def names(self, broken: Broken) -> bool:
        """Whether what is broken is among them: an entry, or all of a distribution."""
        if broken.name == broken.distribution.name and broken.distribution in self.distributions:
            return True
        return any((entry.name, entry.distribution) == (broken.name, broken.distribution) for entry in self.entries)


def _references(config: Config) -> Iterator[tuple[str, str]]:
    if config.agent.python is None:
        yield "agents", config.agent.name
    yield "models", config.model.name
    yield "tasks", config.tasks.train.name
    if config.tasks.eval is not None:
        yield "tasks", config.tasks.eval.name
    if config.reward is not None:
        yield "rewards", config.reward.name
    yield "backends", config.inference.backend.name
    yield "algorithms", config.algorithm.name
    yield from (("trackers", tracker.name) for tracker in config.trackers)
