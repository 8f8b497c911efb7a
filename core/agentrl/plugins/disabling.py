"""Plugins that the user does not want: ``-p no:NAME`` and ``AGENTRL_DISABLE_PLUGINS``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agentrl.environ import DISABLE_PLUGINS
from agentrl.errors import ConfigError, near_matches
from agentrl.plugins.entries import Entry, normalised

__all__ = ["Disabled"]

_SHORT = "agentrl-"


@dataclass(frozen=True, slots=True)
class Disabled:
    """Names of plugins that are not used.

    Each is a distribution (``agentrl-camel``, or ``camel`` for short), an entry's name or ``dist/name``.
    """

    asked: tuple[str, ...]
    """By the command line or a script; each must be installed."""
    environment: tuple[str, ...]
    """By the environment variable, which other environments inherit: here they may be missing."""

    @classmethod
    def of(cls, asked: Iterable[str], environ: Mapping[str, str]) -> Disabled:
        """What was asked for, and what the environment adds."""
        names = (name.strip() for name in environ.get(DISABLE_PLUGINS, "").split(","))
        return cls(tuple(asked), tuple(name for name in names if name))

    def source(self, entry: Entry) -> str | None:
        """What disables ``entry``, as the user wrote it, or ``None`` where nothing does."""
        if name := next((name for name in self.asked if _matches(name, entry)), None):
            return f"-p no:{name}"
        return DISABLE_PLUGINS if any(_matches(name, entry) for name in self.environment) else None

    def refuse_unknown(self, entries: Iterable[Entry]) -> None:
        """Raise ``ConfigError`` for a name that was asked for and matches nothing installed."""
        installed = list(entries)
        for name in self.asked:
            if not any(_matches(name, entry) for entry in installed):
                raise ConfigError(f"there is no plugin {name!r} to disable", fix=_near(name, installed))

    def unmatched(self, entries: Iterable[Entry]) -> tuple[str, ...]:
        """Names of the environment variable that match nothing installed."""
        installed = list(entries)
        return tuple(n for n in self.environment if not any(_matches(n, entry) for entry in installed))


def _near(name: str, installed: Iterable[Entry]) -> str:
    distributions = {entry.distribution.name for entry in installed}
    near = near_matches(name, {*distributions, *(entry.name for entry in installed)})
    return near if near.startswith("did you mean") else near_matches(name, distributions)


def _matches(name: str, entry: Entry) -> bool:
    distribution = normalised(entry.distribution.name)
    return entry.is_called(name) or normalised(name) in (distribution, distribution.removeprefix(_SHORT))
