"""Versions: of agentrl, of Python, and of what training needs, and the requirements that are not met."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from agentrl.doctor.report import Finding, note, ok, problem, warning
from agentrl.errors import PluginError
from agentrl.plugins.entries import CORE, core_version
from agentrl.plugins.references import import_target

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["Unmet", "unmet_requirements", "versions"]

_TRAIN = "train"
"""The extra that brings what training needs."""
_SHOWN = ("torch", "transformers", "renderers", "openai", "httpx", "httpx2")
_IMPORTED = ("torch", "transformers", "renderers", "starlette", "uvicorn")
_PYTHON = "Programming Language :: Python :: "


def versions(case: Case) -> Iterator[Finding]:
    """Find packages that are missing, and versions outside the ranges that agentrl-core declares."""
    yield from _python()
    found = {name: version for name in _SHOWN if (version := _version_of(name))}
    yield ok(", ".join(f"{name} {version}" for name, version in found.items()), versions=found)
    unmet = unmet_requirements(CORE, (_TRAIN,))
    yield from _missing([each for each in unmet if each.direct and each.installed is None])
    for each in unmet:
        if each.direct and each.installed is not None:
            yield problem(str(each), fix=f"pip install '{each.install}'", like=PluginError)
        elif not each.direct:
            yield warning(str(each), fix=f"pip install '{each.install}'")
    if not any(each.direct and each.installed is None for each in unmet):
        case.doing("importing torch and transformers")
        for module in _IMPORTED:
            import_target(module)
        case.complete = True


def _python() -> Iterator[Finding]:
    mine = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    text = f"{CORE} {core_version()} on Python {mine}, {system}"
    figures = {"core": core_version(), "python": mine, "platform": system}
    about = metadata.metadata(CORE)
    tried = [line.removeprefix(_PYTHON) for line in about.get_all("Classifier") or () if line.startswith(_PYTHON)]
    if mine not in SpecifierSet(wanted := str(about["Requires-Python"])):
        yield problem(f"{text}, but it needs Python {wanted}", fix=f"use Python {tried[-1]}", like=PluginError)
    elif tried and not any(mine.startswith(f"{version}.") for version in tried):
        yield note(f"{text}; it has been tried with Python {', '.join(tried)}", **figures)
    else:
        yield ok(text, **figures)


def _missing(unmet: list[Unmet]) -> Iterator[Finding]:
    if unmet:
        names = [each.requirement.name for each in unmet]
        yield problem(
            f"training needs packages that are not installed: {', '.join(names)}",
            fix=f"pip install '{CORE}[{_TRAIN}]'",
            like=PluginError,
            blocks=True,
            missing=names,
        )


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement of a distribution that is not met by what is installed."""

    wanted_by: str
    """The distribution that declares it."""
    requirement: Requirement
    installed: str | None
    """The version that is installed; ``None`` where none is."""
    direct: bool
    """Whether the distribution that was asked about declares it itself, and not one that it needs."""

    @property
    def install(self) -> str:
        """The requirement as ``pip install`` takes it."""
        extras = f"[{','.join(sorted(self.requirement.extras))}]" if self.requirement.extras else ""
        return f"{self.requirement.name}{extras}{self.requirement.specifier}"

    def __str__(self) -> str:
        if self.installed is None:
            return f"{self.wanted_by} needs {self.install}, which is not installed"
        return f"{self.wanted_by} needs {self.install} and {self.requirement.name} {self.installed} is installed"


def _version_of(name: str) -> str | None:
    """The installed version of a distribution; ``None`` where it is not installed."""
    found = _find(name)
    return None if found is None else found.version


def unmet_requirements(name: str, extras: tuple[str, ...] = ()) -> list[Unmet]:
    """The unmet requirements of the distribution ``name`` with ``extras``, and of all that it needs in turn.

    Requirements of agentrl-core itself are left out: a plugin's range of it is checked before the plugin is loaded.
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
    """The version of a distribution and the requirements that it declares, as far as they can be read."""
    found = _find(name)
    return (None, ()) if found is None else (found.version, tuple(_declared(found.requires or ())))


def _declared(lines: list[str] | tuple[str, ...]) -> Iterator[Requirement]:
    for line in lines:
        try:
            yield Requirement(line)
        except InvalidRequirement:
            continue


def _applying(declared: tuple[Requirement, ...], extra: str) -> Iterator[Requirement]:
    """The requirements among ``declared`` that apply here to ``extra``; the empty one is for what is always needed."""
    for requirement in declared:
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if (always and not extra) or (not always and marker is not None and marker.evaluate({"extra": extra})):
            yield requirement
