"""What is installed into an environment, and from where."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from agentrl.errors import ConfigError, one_line
from agentrl.plugins.entries import CORE, beside_core, core_version, installed_from, normalised

__all__ = ["Source", "core_source", "parse_source", "plugin_source"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PATH = re.compile(r"[.~]|[^-].*/|/")


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that pip installs."""

    text: str
    """A requirement, a URL or an absolute path."""
    project: str | None
    """The normalised name of its distribution, where that is known without building it."""
    folder: Path | None = None
    """The local folder that it is, if it is one."""

    def __str__(self) -> str:
        if self.folder is not None:
            return f"{self.project or self.folder.name} from the folder {self.folder}"
        if os.path.isabs(self.text):
            return f"the file {self.text}"
        return f"{self.text} from the package index" if self.project else self.text

    @property
    def is_core(self) -> bool:
        """Whether it is agentrl-core itself."""
        return self.project == CORE


def parse_source(text: str) -> Source:
    """What ``--from`` takes: a folder or an archive if it looks like a path, a URL, else a requirement.

    Raises ``ConfigError`` for what is none of them, or does not exist.
    """
    if _URL.match(text):
        return Source(text, project=None)
    if _PATH.match(text) and "://" not in text:
        return _path(Path(os.path.expanduser(text)).absolute())
    return _requirement(text)


def core_source() -> Source:
    """This core again: from the folder or file that it was installed from, else its version from the index."""
    version, path = core_version(), installed_from()
    return _requirement(f"{CORE}=={version}") if path is None else _path(path)


def plugin_source(requirement: str, core: Source) -> Source:
    """``requirement``, taken from the checkout that ``core`` is where the plugin is in there."""
    source = parse_source(requirement)
    beside = beside_core(source.project, core.folder) if source.project and core.folder else None
    return source if beside is None else _path(beside)


def _path(path: Path) -> Source:
    if path.is_file():
        return Source(str(path), _project_of_file(path.name))
    if not path.is_dir():
        raise ConfigError(f"there is no {path} to install from", fix="name a folder that holds a pyproject.toml")
    if not any((path / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise ConfigError(f"{path} is no Python project", fix="name a folder that holds a pyproject.toml")
    return Source(str(path), _project(path), folder=path)


def _project_of_file(name: str) -> str | None:
    """The name in the file name of a wheel or a source archive, which both standards put before a hyphen."""
    if name.endswith(".whl"):
        return normalised(name.partition("-")[0])
    return normalised(name.rpartition("-")[0]) if name.endswith(".tar.gz") else None


def _project(folder: Path) -> str | None:
    """The name in a folder's ``pyproject.toml``; older projects say theirs only when they are built."""
    import tomllib

    try:
        name = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {}).get("name")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / 'pyproject.toml'} cannot be read: {one_line(error)}", fix="correct it") from error
    return normalised(name) if isinstance(name, str) else None


def _requirement(text: str) -> Source:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Source(text, normalised(Requirement(text).name))
    except InvalidRequirement as error:
        raise ConfigError(
            f"{text!r} is no requirement: {one_line(str(error).splitlines()[0])}",
            fix="write a folder as ./folder, and a package as name or name==1.0",
        ) from error
