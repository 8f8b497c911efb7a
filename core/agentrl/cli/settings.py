"""What `train`, `eval` and `doctor` share: their arguments, and the environment that an agent is found in."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.config.loader import Resolved
    from agentrl.plugins.manager import Plugins

__all__ = ["located", "split_arguments"]


def split_arguments(arguments: tuple[str, ...], what: str) -> tuple[str | None, tuple[str, ...]]:
    """The one argument that is no setting, if there is one, and the settings.

    Raises ``ConfigError`` where there are two; ``what`` says what the one would be.
    """
    settings = tuple(filter(_is_setting, arguments))
    names = [argument for argument in arguments if argument not in settings]
    if len(names) > 1:
        raise ConfigError(
            f"{names[1]!r} is one {what} too many beside {names[0]!r}", fix="settings are written KEY=VALUE"
        )
    return next(iter(names), None), settings


def _is_setting(argument: str) -> bool:
    """Whether it is KEY=VALUE: a path may hold an equals sign too, but no key holds a slash before it.

    A path that begins like a key is told by its file, and one that is a whole key by writing it as ``./KEY=VALUE``.
    """
    key, equals, _ = argument.partition("=")
    if not equals or _is_key(key.strip()):
        return bool(equals)
    return "/" not in key and not _is_there(argument)


def _is_key(text: str) -> bool:
    """Whether it begins with a key that there is, and could be one."""
    from agentrl.config import Config

    names = text.split(".")
    return names[0] in Config.model_fields and "/" not in "".join(names[:2])


def _is_there(argument: str) -> bool:
    """Whether a file or folder has the name, or the file of ``file.py:Obj``."""
    from agentrl.plugins.references import FileReference, parse_reference

    reference = parse_reference(argument)
    path = reference.path if isinstance(reference, FileReference) else Path(os.path.expanduser(argument))
    return path.exists()


def located(resolved: Resolved, plugins: Plugins) -> Resolved:
    """``resolved`` with the interpreter of an agent that is known in an environment alone, and where it was found.

    Raises as ``agentrl.environments.locate_agent`` does.
    """
    from agentrl.environments import environment_of, locate_agent

    config = locate_agent(resolved.config, plugins)
    if config is resolved.config or config.agent.python is None:
        return resolved
    environment = environment_of(config.agent.python)
    place = f"environment {environment.name}" if environment else "environment"
    return replace(resolved, config=config, provenance={**resolved.provenance, "agent.python": place})
