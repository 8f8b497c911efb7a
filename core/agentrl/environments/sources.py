"""What is installed into an environment, from where, and how pip is given it.

pip leaves ``build`` and ``*.egg-info`` in a local folder that it builds, and such leftovers later hide the entry points
of what is installed. So a folder that is not installed editable is built from a copy, and one that is loses what the
build has left in it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentrl.errors import ConfigError, one_line
from agentrl.plugins.entries import CORE, beside_core, core_version, installed_from, normalised

__all__ = ["Source", "copied", "core_source", "parse_source", "plugin_source", "tidied"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PATH = re.compile(r"[.~]|[^-].*/|/")
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".hg", ".tox", ".nox", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)
_LEFT_OUT_ABOVE = frozenset({"build", "dist", "runs"})


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that pip installs."""

    text: str
    """A requirement, a URL or an absolute path."""
    project: str | None
    """The normalised name of its distribution, where that is known without building it."""
    folder: Path | None = None
    """The local folder, where the source is one."""

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
    """The source that a value of ``--from`` means: a folder or archive, a URL, or a requirement.

    As for pip, only a text that looks like a path is one. Raises ``ConfigError`` for a text that is none of these, and
    for a path that does not exist or holds no Python project.
    """
    if _URL.match(text):
        return Source(text, project=None)
    if _PATH.match(text) and "://" not in text:
        return _path(Path(os.path.expanduser(text)).absolute())
    return _requirement(text)


def core_source() -> Source:
    """The agentrl-core that runs: the folder or file that it was installed from, else its version in the index."""
    version, path = core_version(), installed_from()
    return _requirement(f"{CORE}=={version}") if path is None else _path(path)


def plugin_source(requirement: str, core: Source) -> Source:
    """The source for ``requirement``: the plugin's folder where ``core`` is a checkout that has it, else the index."""
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


def copied(sources: Iterable[Source], into: Path) -> list[str]:
    """The arguments of ``pip install`` for ``sources``, with folders copied below ``into``. Raises ``OSError``."""
    return [
        _copy(source.folder, into / str(index)) if source.folder else source.text
        for index, source in enumerate(sources)
    ]


@contextmanager
def tidied(sources: Iterable[Source]) -> Iterator[list[str]]:
    """The arguments of ``pip install`` for ``sources``, with folders editable.

    What the build leaves in the folders is removed when the block ends.
    """
    sources = list(sources)
    before = {path for source in sources for path in _leftovers(source)}
    try:
        yield [argument for source in sources for argument in (["-e", source.text] if source.folder else [source.text])]
    finally:
        for path in {path for source in sources for path in _leftovers(source)} - before:
            shutil.rmtree(path, ignore_errors=True)


def _copy(folder: Path, target: Path) -> str:
    def ignored(directory: str, names: list[str]) -> set[str]:
        here = Path(directory)
        skipped = {name for name in names if (here / name / "pyvenv.cfg").is_file()}
        if here == folder:
            # A folder of one of these names may also be a package.
            skipped |= {name for name in _LEFT_OUT_ABOVE & set(names) if not (here / name / "__init__.py").is_file()}
        return skipped | _LEFT_OUT(directory, names)

    shutil.copytree(folder, target, ignore=ignored, ignore_dangling_symlinks=True)
    return str(target)


def _leftovers(source: Source) -> list[Path]:
    if source.folder is None:
        return []
    return [path for pattern in ("build", "*.egg-info", "*/*.egg-info") for path in source.folder.glob(pattern)]
