"""The environments there are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.environment import Environment
from agentrl.environments.places import environment_name, environments_folder, is_environment_folder
from agentrl.environments.record import read_record
from agentrl.errors import ConfigError, PluginError, near_matches
from agentrl.plugins.entries import Entry
from agentrl.plugins.kinds import HOOKS

__all__ = ["entries_elsewhere", "environment_at", "environment_of", "environments", "find_environment", "incomplete"]


def environments(environ: Mapping[str, str] | None = None) -> tuple[Environment, ...]:
    """The complete environments, sorted by name. Raises ``PluginError`` where their folder cannot be read."""
    found = (environment_at(path) for path in _folders(environ))
    return tuple(environment for environment in found if environment is not None)


def incomplete(environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Folders of environments that are being made, or were begun and never finished."""
    return tuple(path for path in _folders(environ) if environment_at(path) is None)


def environment_at(path: Path) -> Environment | None:
    """The environment in the folder ``path``, or ``None`` where no complete one is."""
    record = read_record(path)
    return None if record is None else Environment(path.name, path, path / "bin" / "python", record)


def find_environment(name: str, environ: Mapping[str, str] | None = None) -> Environment:
    """The environment called ``name``. Raises ``ConfigError`` with the names that are near where there is none."""
    known = {environment.name: environment for environment in environments(environ)}
    if (short := environment_name(name)) not in known:
        raise ConfigError(f"there is no environment {name!r}", fix=near_matches(short, known))
    return known[short]


def environment_of(python: Path, environ: Mapping[str, str] | None = None) -> Environment | None:
    """The environment whose interpreter ``python`` is, so that a message can name the command that mends it."""
    path = Path(os.path.expanduser(python)).absolute()
    return next((known for known in environments(environ) if known.python == path), None)


def entries_elsewhere() -> tuple[Entry, ...]:
    """What the plugins of all environments bring into a run: agents, and the hooks that adapt objects to agents.

    Also their backends, which run here: whoever asks for one learns what to install.
    """
    kinds = ("agents", "backends", HOOKS)
    return tuple(entry for known in environments() for kind in kinds for entry in known.entries(kind))


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
