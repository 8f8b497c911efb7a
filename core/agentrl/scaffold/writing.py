"""Writing a new plugin from the templates: the whole folder, or nothing."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.version import Version

from agentrl.errors import ConfigError
from agentrl.plugins.entries import core_version
from agentrl.scaffold.names import PluginKind, PluginName

__all__ = ["write_plugin"]

_TEMPLATES = Path(__file__).parent / "templates"
_SHARED = "common"
_HIDDEN = "gitignore"
"""The template of ``.gitignore``; without the dot it has no effect on the templates themselves."""


def write_plugin(name: PluginName, kind: PluginKind, into: Path) -> Path:
    """Write a distribution of ``kind`` to a new folder in ``into``, and return the folder.

    Raises ``ConfigError``, with nothing written, where the folder exists or cannot be made.
    """
    folder = into / name.distribution
    if not into.is_dir():
        fix = f"mkdir -p {shlex.quote(str(into))}, or name another with --into"
        raise ConfigError(f"there is no folder {str(into)!r}", fix=fix)
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists", fix="choose another name, or another folder with --into")
    files = _rendered(name, kind)
    try:
        with TemporaryDirectory(prefix=f".{name.distribution}-", dir=into) as staging:
            draft = Path(staging) / name.distribution
            _write(draft, files)
            draft.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}", fix="name another folder with --into"
        ) from error
    return folder


def _write(folder: Path, files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def _rendered(name: PluginName, kind: PluginKind) -> dict[Path, str]:
    """The text of every file of the distribution, by its path in it."""
    values = _values(name, kind.capitalize())
    return {
        Path(_replaced(str(path), values)): _replaced(source.read_text(encoding="utf-8"), values)
        for root in (_TEMPLATES / _SHARED, _TEMPLATES / kind)
        for path, source in _files(root)
    }


def _files(root: Path) -> Iterator[tuple[Path, Path]]:
    """The path that each template below ``root`` has in the plugin, and its own; without compiled files."""
    for source in sorted(root.rglob("*")):
        path = source.relative_to(root)
        if source.is_file() and "__pycache__" not in path.parts:
            yield path.with_name(f".{path.name}") if path.name == _HIDDEN else path, source


def _values(name: PluginName, noun: str) -> dict[str, str]:
    """The text for each placeholder. They are words that Python takes for names, so that templates can be linted."""
    core = Version(core_version())
    return {
        "plugin-name": name.entry,
        "plugin_name": name.identifier,
        f"PluginName{noun}": name.class_of(noun),
        "PluginName": name.camel,
        "CORE_VERSION": core.public,
        "NEXT_CORE": f"0.{core.minor + 1}" if core.major == 0 else str(core.major + 1),
    }


def _replaced(text: str, values: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], text)
