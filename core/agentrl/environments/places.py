"""Where environments are, and what they may be called."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from agentrl.environ import ENVIRONMENTS
from agentrl.errors import ConfigError, PluginError

__all__ = ["LOG", "RECORD", "environment_name", "environments_folder", "is_environment_folder"]

RECORD = "agentrl-environment.json"
"""The file that makes a folder an environment; written last."""
LOG = "agentrl-environment.log"
"""What pip and the other programs said while the environment was made."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PREFIX = "agentrl-"


def environments_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder that holds one folder an environment; it need not exist.

    It is ``AGENTRL_ENVIRONMENTS``, else ``agentrl/environments`` in the user's data folder. Raises ``PluginError``
    for a user who has no home.
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


def environment_name(text: str) -> str:
    """The name that ``text`` gives an environment: ``agentrl-camel`` is ``camel``.

    Raises ``ConfigError`` for what cannot be one.
    """
    name = text.removeprefix(_PREFIX)
    if _NAME.fullmatch(name):
        return name
    raise ConfigError(f"{text!r} is not the name of an environment", fix=_fix(name))


def _fix(name: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        project = Requirement(name).name
    except InvalidRequirement:
        return "letters, digits and - _ . make a name"
    return f"write agentrl env create {project} --from {shlex.quote(_PREFIX + name)}"


def is_environment_folder(path: Path) -> bool:
    """Whether ``agentrl env create`` has made ``path``, or begun to."""
    return path.is_dir() and any((path / name).exists() for name in (RECORD, LOG, "pyvenv.cfg"))
