"""Which requirements of an installed distribution are not met, as ``pip check`` sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from agentrl.plugins.entries import CORE

__all__ = ["Unmet", "unmet_requirements", "version_of"]


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement that what is installed does not meet."""

    wanted_by: str
    """The distribution that declares it."""
    requirement: Requirement
    installed: str | None
    """The version that is installed; ``None`` for none."""
    direct: bool
    """Whether the distribution that was asked about declares it, and not one of those that it needs."""

    @property
    def install(self) -> str:
        """What pip is to be told."""
        extras = f"[{','.join(sorted(self.requirement.extras))}]" if self.requirement.extras else ""
        return f"{self.requirement.name}{extras}{self.requirement.specifier}"

    def __str__(self) -> str:
        if self.installed is None:
            return f"{self.wanted_by} needs {self.install}, which is not installed"
        return f"{self.wanted_by} needs {self.install} and {self.requirement.name} {self.installed} is installed"


def version_of(name: str) -> str | None:
    """The installed version of a distribution; ``None`` for none."""
    found = _find(name)
    return None if found is None else found.version


def unmet_requirements(name: str, extras: tuple[str, ...] = ()) -> list[Unmet]:
    """Those of the distribution ``name`` with ``extras``, and of everything that it needs in turn.

    Plugins need agentrl-core, which is passed over: their ranges of it are checked before they are loaded.
    """
    find, found = cache(_read), list[Unmet]()
    waiting = [(name, extra) for extra in ("", *extras)]
    seen = set(waiting)
    while waiting:
        owner, extra = waiting.pop(0)
        for requirement in _applying(find(owner)[1], extra):
            project = canonicalize_name(requirement.name)
            if project == CORE:
                continue
            installed = find(project)[0]
            if installed is None or not requirement.specifier.contains(installed, prereleases=True):
                found.append(Unmet(owner, requirement, installed, direct=owner == name))
                continue
            needed = [(project, of) for of in ("", *requirement.extras) if (project, of) not in seen]
            seen.update(needed)
            waiting += needed
    return found


def _find(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _read(name: str) -> tuple[str | None, tuple[Requirement, ...]]:
    """The version of a distribution and what it declares, as far as that can be read."""
    found = _find(name)
    return (None, ()) if found is None else (found.version, tuple(_declared(found.requires or ())))


def _declared(lines: list[str] | tuple[str, ...]) -> Iterator[Requirement]:
    for line in lines:
        try:
            yield Requirement(line)
        except InvalidRequirement:
            continue


def _applying(declared: tuple[Requirement, ...], extra: str) -> Iterator[Requirement]:
    """What applies here of that for ``extra``, which is empty for what is always needed."""
    for requirement in declared:
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if (always and not extra) or (not always and marker is not None and marker.evaluate({"extra": extra})):
            yield requirement
