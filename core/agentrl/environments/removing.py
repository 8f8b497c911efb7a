"""Removing an environment."""

from __future__ import annotations

from pathlib import Path

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.folders import held, remove_folder
from agentrl.environments.known import environments, incomplete
from agentrl.environments.places import environment_name, environments_folder
from agentrl.errors import ConfigError, PluginError, near_matches, one_line

__all__ = ["remove_environment"]


def remove_environment(name: str) -> Path:
    """Remove the environment ``name``, complete or not, and return the folder that it was in.

    Raises ``ConfigError`` where there is none; nothing but an environment's own folder is ever removed.
    """
    folder = environments_folder() / environment_name(name)
    removable = {*(known.path for known in environments()), *incomplete()}
    if folder not in removable:
        if folder.exists():
            raise ConfigError(f"{folder} holds something that is no environment", fix="remove it yourself")
        raise ConfigError(
            f"there is no environment {name!r}", fix=near_matches(folder.name, (p.name for p in removable))
        )
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link to another place", fix="remove it yourself")
    try:
        with held(folder):
            remove_folder(folder)
    except OSError as error:
        raise PluginError(
            f"cannot remove {folder}: {error.strerror or one_line(error)}", fix=f"is {ENVIRONMENTS} yours to write to?"
        ) from error
    return folder
