"""An environment: an interpreter of its own, with agentrl-core and the plugins that live there.

Each is a folder of its name in ``environments_folder()``. The file ``MANIFEST`` in it says how it was made and is
written last, so a folder without one is an environment that is being made or was never finished. What is installed in
an environment is read from its files; its interpreter is not started.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from agentrl.environ import ENVIRONMENTS
from agentrl.errors import ConfigError, PluginError, near_matches
from agentrl.plugins.entries import CORE, Broken, Distribution, Entry, Scan, normalised, scan, unmet_range
from agentrl.plugins.kinds import HOOKS

__all__ = [
    "LOG",
    "MANIFEST",
    "Environment",
    "Manifest",
    "entries_elsewhere",
    "environment_at",
    "environment_name",
    "environment_of",
    "environments",
    "environments_folder",
    "find_environment",
    "incomplete",
    "is_environment_folder",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "agentrl-environment.json"
"""The file that makes a folder an environment."""
LOG = "agentrl-environment.log"
"""The output of pip and of the other programs that made the environment."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PREFIX = "agentrl-"


@dataclass(frozen=True, slots=True)
class Manifest:
    """How an environment was made."""

    python_version: str
    interpreter: str | None
    """The interpreter that was asked for; ``None`` for the one that ran agentrl."""
    sources: tuple[str, ...]
    """The sources that were asked for, folders as absolute paths; none where the name alone decided."""
    editable: bool
    """Whether folders among the sources were installed as they are, so that later changes to them count."""
    created: str
    """The time, in ISO 8601."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``, or ``None`` where there is none that can be read."""
    import json

    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        # A later version may write more than this one knows.
        known = {field.name: written[field.name] for field in fields(Manifest)}
        return Manifest(**{**known, "sources": tuple(map(str, known["sources"]))})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest whole or not at all. Raises ``OSError``."""
    import json

    aside = folder / f".{MANIFEST}.part"
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(manifest), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / MANIFEST)


@dataclass(frozen=True)
class Environment:
    """One that is complete. What is installed in it is looked up once in the life of the object."""

    name: str
    path: Path
    """Its folder."""
    python: Path
    """Its interpreter, as the key ``agent.python`` takes it."""
    manifest: Manifest

    @property
    def core(self) -> str | None:
        """The version of agentrl-core in it, or ``None`` where that has been removed."""
        versions = [entry.distribution.version for entry in self._scan.entries if _is_core(entry.distribution)]
        return versions[0] if versions else None

    @property
    def fault(self) -> str | None:
        """Why nothing can run in it, or ``None`` where something can."""
        if not os.access(self.python, os.X_OK):
            return f"its interpreter {self.python} is gone"
        return None if self.core else f"{CORE} is not installed in it"

    @property
    def remedy(self) -> str:
        """The command that makes it anew."""
        return f"agentrl env create {self.name} --replace"

    @property
    def plugins(self) -> tuple[Distribution, ...]:
        """The distributions in it, other than agentrl-core, that declare entry points of agentrl's groups."""
        distributions = {entry.distribution: None for entry in self._scan.entries}
        return tuple(distribution for distribution in distributions if not _is_core(distribution))

    def entries(self, kind: str) -> tuple[Entry, ...]:
        """The entries of ``kind`` that its usable plugins declare, sorted by name; those of agentrl-core are not
        among them."""
        return tuple(
            entry
            for entry in self._scan.entries
            if entry.kind == kind and not _is_core(entry.distribution) and entry.distribution not in self._unmet
        )

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Plugins in it that cannot be used, as far as their metadata tells."""
        unmet = (Broken(each.name, each, reason) for each, reason in self._unmet.items())
        return (*self._scan.broken, *unmet)

    @property
    def site_packages(self) -> list[str]:
        """The folders that hold what is installed in it."""
        return [str(folder) for folder in self.path.glob("lib/python*/site-packages")]

    @cached_property
    def _scan(self) -> Scan:
        return scan(self.site_packages)

    @cached_property
    def _unmet(self) -> dict[Distribution, str]:
        reasons = {distribution: unmet_range(distribution, self.core) for distribution in self.plugins}
        return {distribution: reason for distribution, reason in reasons.items() if reason}


def _is_core(distribution: Distribution) -> bool:
    return normalised(distribution.name) == CORE


def environments(environ: Mapping[str, str] | None = None) -> tuple[Environment, ...]:
    """The complete environments, sorted by name. Raises ``PluginError`` where their folder cannot be read."""
    found = (environment_at(path) for path in _folders(environ))
    return tuple(environment for environment in found if environment is not None)


def incomplete(environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """The folders of environments that are being made, or were begun and never finished."""
    return tuple(path for path in _folders(environ) if environment_at(path) is None)


def environment_at(path: Path) -> Environment | None:
    """The environment in the folder ``path``, or ``None`` where there is no complete one."""
    manifest = read_manifest(path)
    return None if manifest is None else Environment(path.name, path, path / "bin" / "python", manifest)


def find_environment(name: str, environ: Mapping[str, str] | None = None) -> Environment:
    """The environment called ``name``. Raises ``ConfigError``, with names that are near, where there is none."""
    known = {environment.name: environment for environment in environments(environ)}
    if (short := environment_name(name)) not in known:
        raise ConfigError(f"there is no environment {name!r}", fix=near_matches(short, known))
    return known[short]


def environment_of(python: Path, environ: Mapping[str, str] | None = None) -> Environment | None:
    """The environment that has ``python`` as its interpreter, or ``None`` where none has."""
    path = Path(os.path.expanduser(python)).absolute()
    return next((known for known in environments(environ) if known.python == path), None)


def entries_elsewhere() -> tuple[Entry, ...]:
    """The agents, hooks and backends that the plugins of all environments declare.

    Agents run in their environment, and hooks adapt objects to agents there. Backends run in the process that trains:
    they are among these so that a message about a missing one can say what to install.
    """
    kinds = ("agents", "backends", HOOKS)
    return tuple(entry for known in environments() for kind in kinds for entry in known.entries(kind))


def environments_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder that holds the folders of all environments; it need not exist.

    It is ``AGENTRL_ENVIRONMENTS``, else ``agentrl/environments`` in the user's data folder. Raises ``PluginError``
    for a user without a home folder.
    """
    environ = os.environ if environ is None else environ
    if given := environ.get(ENVIRONMENTS):
        return Path(os.path.expanduser(given)).absolute()
    data = Path(environ.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else _user_data()) / "agentrl" / "environments"


def _user_data() -> Path:
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise PluginError("there is no home folder that could hold environments", fix=f"set {ENVIRONMENTS} to a folder")
    return Path(home, "Library/Application Support" if sys.platform == "darwin" else ".local/share")


def _folders(environ: Mapping[str, str] | None) -> Iterator[Path]:
    folder = environments_folder(environ)
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise PluginError(
            f"cannot read the environments in {folder}: {error.strerror}", fix=f"set {ENVIRONMENTS} to another folder"
        ) from error
    yield from (folder / name for name in names if is_environment_folder(folder / name))


def is_environment_folder(path: Path) -> bool:
    """Whether ``agentrl env create`` has made the folder ``path``, or has begun to."""
    return path.is_dir() and any((path / name).exists() for name in (MANIFEST, LOG, "pyvenv.cfg"))


def environment_name(text: str) -> str:
    """The name of the environment that ``text`` means: for ``agentrl-camel`` it is ``camel``.

    Raises ``ConfigError`` for a text that cannot name one.
    """
    name = text.removeprefix(_PREFIX)
    if _NAME.fullmatch(name):
        return name
    raise ConfigError(f"{text!r} is not the name of an environment", fix=_fix_of_name(name))


def _fix_of_name(name: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        project = Requirement(name).name
    except InvalidRequirement:
        return "letters, digits and - _ . make a name"
    return f"write agentrl env create {project} --from {shlex.quote(_PREFIX + name)}"
