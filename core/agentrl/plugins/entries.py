"""The names that installed distributions declare, read from their metadata without importing anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from agentrl.errors import one_line

__all__ = ["Broken", "Distribution", "Entry", "Scan", "normalised", "scan"]

_GROUP_PREFIX = "agentrl."


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution that declares entry points of ours."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    """Its ``Requires-Dist`` lines."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name, and what it names."""

    kind: str
    name: str
    target: str
    """``module:attribute`` or ``module``, imported when the name is used."""
    distribution: Distribution
    value: object = field(default=None, compare=False, repr=False)
    """The object itself, where a plugin registered one at run time."""

    @property
    def qualified(self) -> str:
        """``dist/name``, which no other distribution can claim."""
        return f"{self.distribution.name}/{self.name}"

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is this entry's name, alone or as ``dist/name``."""
        if name == self.name:
            return True
        distribution, slash, rest = name.partition("/")
        return bool(slash) and rest == self.name and normalised(distribution) == normalised(self.distribution.name)


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin that cannot be used, and why."""

    name: str
    distribution: Distribution
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Scan:
    """What is installed."""

    entries: tuple[Entry, ...]
    broken: tuple[Broken, ...]
    """Distributions whose entry points cannot be read."""


def normalised(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def scan(path: Sequence[str] | None = None) -> Scan:
    """Every entry of ours in the folders of ``path``, by default ``sys.path``.

    Of two copies of a distribution the first one counts.
    """
    entries: list[Entry] = []
    broken: list[Broken] = []
    seen: set[str] = set()
    for installed in metadata.distributions() if path is None else metadata.distributions(path=list(path)):
        if f"[{_GROUP_PREFIX}" not in (installed.read_text("entry_points.txt") or ""):
            continue
        distribution = _distribution(installed)
        if normalised(distribution.name) in seen:
            continue
        seen.add(normalised(distribution.name))
        try:
            entries += _entries(installed, distribution)
        except Exception as error:
            reason = f"its entry_points.txt is malformed: {one_line(error)}"
            broken.append(Broken(distribution.name, distribution, reason))
    return Scan(tuple(sorted(entries, key=lambda entry: (entry.kind, entry.name, entry.qualified))), tuple(broken))


def _distribution(installed: metadata.Distribution) -> Distribution:
    fields = installed.metadata
    return Distribution(
        name=fields["Name"] or "unnamed",
        version=fields["Version"] or "unknown",
        requires=tuple(fields.get_all("Requires-Dist") or ()),
    )


def _entries(installed: metadata.Distribution, distribution: Distribution) -> Iterator[Entry]:
    for point in installed.entry_points:
        if point.group.startswith(_GROUP_PREFIX):
            kind = point.group.removeprefix(_GROUP_PREFIX)
            yield Entry(kind, point.name, point.value.split("[")[0].strip(), distribution)
