"""What installed distributions declare, read from their metadata without importing anything.

``scan`` finds their entry points. ``Disabled`` says which the user leaves out, ``unmet_range`` which were made for
another version of core, and ``install_command`` how a plugin is installed that is missing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agentrl.environ import DISABLE_PLUGINS
from agentrl.errors import ConfigError, PluginError, near_matches, one_line

__all__ = [
    "CORE",
    "OLDEST_PYTHON",
    "Broken",
    "Disabled",
    "Distribution",
    "Entry",
    "Scan",
    "beside_core",
    "core_version",
    "install_command",
    "installed_from",
    "normalised",
    "provider",
    "scan",
    "unmet_range",
]

_GROUP_PREFIX = "agentrl."


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution that declares entry points of agentrl."""

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
    """Every entry point of agentrl in the folders of ``path``, by default ``sys.path``.

    Where a distribution is installed twice, the first copy counts.
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


_SHORT = "agentrl-"


@dataclass(frozen=True, slots=True)
class Disabled:
    """Names of plugins that are not used.

    Each is a distribution (``agentrl-camel``, or ``camel`` for short), an entry's name or ``dist/name``.
    """

    asked: tuple[str, ...]
    """Names from the command line or a script. A name that matches nothing installed is an error."""
    environment: tuple[str, ...]
    """Names from the environment variable. It is inherited by other environments, so a name may match nothing here."""

    @classmethod
    def of(cls, asked: Iterable[str], environ: Mapping[str, str]) -> Disabled:
        """The names in ``asked``, and those that the variable in ``environ`` adds."""
        names = (name.strip() for name in environ.get(DISABLE_PLUGINS, "").split(","))
        return cls(tuple(asked), tuple(name for name in names if name))

    def source(self, entry: Entry) -> str | None:
        """What disables ``entry``, as the user wrote it, or ``None`` where nothing does."""
        if name := next((name for name in self.asked if _matches(name, entry)), None):
            return f"-p no:{name}"
        return DISABLE_PLUGINS if any(_matches(name, entry) for name in self.environment) else None

    def refuse_unknown(self, entries: Iterable[Entry]) -> None:
        """Raise ``ConfigError`` for a name in ``asked`` that matches none of ``entries``."""
        installed = list(entries)
        for name in self.asked:
            if not any(_matches(name, entry) for entry in installed):
                raise ConfigError(f"there is no plugin {name!r} to disable", fix=_near(name, installed))

    def unmatched(self, entries: Iterable[Entry]) -> tuple[str, ...]:
        """The names from the environment variable that match none of ``entries``."""
        installed = list(entries)
        return tuple(n for n in self.environment if not any(_matches(n, entry) for entry in installed))


def _near(name: str, installed: Iterable[Entry]) -> str:
    distributions = {entry.distribution.name for entry in installed}
    near = near_matches(name, {*distributions, *(entry.name for entry in installed)})
    return near if near.startswith("did you mean") else near_matches(name, distributions)


def _matches(name: str, entry: Entry) -> bool:
    distribution = normalised(entry.distribution.name)
    return entry.is_called(name) or normalised(name) in (distribution, distribution.removeprefix(_SHORT))


CORE = "agentrl-core"

OLDEST_PYTHON = (3, 11)
"""The first version of Python that core runs on."""


@cache
def core_version() -> str:
    """The installed version of agentrl-core."""
    try:
        return metadata.version(CORE)
    except metadata.PackageNotFoundError as error:
        raise PluginError(
            f"{CORE} is on sys.path but not installed", fix="pip install -e . where its code is"
        ) from error


def unmet_range(distribution: Distribution, version: str | None = None) -> str | None:
    """Why core is outside the range that ``distribution`` declares, or ``None`` where it is not.

    ``version`` is that of the core beside the distribution, by default this one.
    """
    if normalised(distribution.name) == CORE:
        return None
    for line in distribution.requires:
        if _project(line) == CORE and (problem := _problem(line, version or core_version())):
            return problem
    return None


def _project(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normalised(match.group()) if match else ""


def _problem(line: str, version: str) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return f"its requirement {line!r} cannot be read"
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if not applies or requirement.specifier.contains(version, prereleases=True):
        return None
    return f"it needs {CORE}{requirement.specifier} and this is {version}"


def installed_from() -> Path | None:
    """The folder or file that pip installed this core from (PEP 610), if it still exists; ``None`` for an index."""
    url = urlsplit(_direct_url())
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None


def beside_core(project: str, core: Path | None = None) -> Path | None:
    """The folder of the plugin ``project`` in the checkout ``core``, by default the one that this core is from."""
    checkout = core or installed_from()
    folder = checkout / "plugins" / normalised(project) if checkout else None
    return folder if folder is not None and folder.is_dir() else None


def install_command(project: str) -> str:
    """The command that installs ``project``, from core's checkout where it is in there."""
    folder = beside_core(project)
    if folder is None:
        return f"pip install {project}, or in a checkout of it pip install ./plugins/{project}"
    return f"pip install {shlex.quote(str(folder))}, or pip install {project} where it is on an index"


def provider(kind: str, name: str) -> str | None:
    """The plugin in core's checkout that declares ``name`` of ``kind``; ``None`` where there is none."""
    return next((project for project, names in _declared(kind) if name in names), None)


def _direct_url() -> str:
    # A build leaves metadata in the checkout too, without this file, and there it is found first.
    texts = (found.read_text("direct_url.json") for found in metadata.distributions(name=CORE))
    text = next(filter(None, texts), None)
    return str(json.loads(text)["url"]) if text else ""


def _declared(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import tomllib

    core = installed_from()
    for path in sorted(core.glob("plugins/*/pyproject.toml")) if core and core.is_dir() else ():
        try:
            project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
            yield project["name"], project.get("entry-points", {}).get(f"agentrl.{kind}", {})
        except (OSError, ValueError, KeyError):  # What is being written beside core is no reason to fail here.
            continue
