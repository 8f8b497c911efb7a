"""What a new plugin is called, in every place that has a spelling of its own."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from agentrl.errors import ConfigError
from agentrl.plugins import Plugins
from agentrl.plugins.entries import normalised
from agentrl.plugins.kinds import HOOKS, KINDS

__all__ = ["GROUPS", "PluginKind", "PluginName", "plugin_name"]

PluginKind = Literal[
    "agent", "reward", "tasks", "model", "backend", "algorithm", "tracker", "scheduler", "command", "hooks"
]

GROUPS: dict[PluginKind, str] = {
    "agent": "agents",
    "reward": "rewards",
    "tasks": "tasks",
    "model": "models",
    "backend": "backends",
    "algorithm": "algorithms",
    "tracker": "trackers",
    "scheduler": "schedulers",
    "command": "commands",
    "hooks": HOOKS,
}
"""The kind in the registry that a plugin's entry is of: its entry-point group without ``agentrl.``."""

_SLOT = "advantage."
"""What the name of the part begins with that a new algorithm comes with."""

_PREFIX = "agentrl-"
_VALID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class PluginName:
    """A name in lower case, its words separated by dashes."""

    entry: str
    """What it is chosen by: ``my-agent``."""

    @property
    def distribution(self) -> str:
        """What it is installed as: ``agentrl-my-agent``."""
        return _PREFIX + self.entry

    @property
    def identifier(self) -> str:
        """``my_agent``."""
        return self.entry.replace("-", "_")

    @property
    def package(self) -> str:
        """What it is imported as: ``agentrl_my_agent``."""
        return f"agentrl_{self.identifier}"

    @property
    def camel(self) -> str:
        """``MyAgent``."""
        return "".join(word.capitalize() for word in self.entry.split("-"))

    def class_of(self, noun: str) -> str:
        """What its class is called, which ends in ``noun`` once."""
        return self.camel if self.camel.endswith(noun) else self.camel + noun


def plugin_name(text: str, kind: PluginKind, plugins: Plugins) -> PluginName:
    """The name that ``text`` means, with or without ``agentrl-``, for a new plugin of ``kind``.

    Raises ``ConfigError`` for a name that could not be imported, or that something installed has already.
    """
    name = PluginName(normalised(text).removeprefix(_PREFIX))
    if not _VALID.fullmatch(name.entry) or keyword.iskeyword(name.identifier):
        raise ConfigError(f"{text!r} cannot name a plugin", fix=_suggestion(name))
    _refuse_taken(name, kind, plugins)
    return name


def _suggestion(name: PluginName) -> str:
    words = re.findall(r"[a-z0-9]+", name.entry)
    near = "-".join(words).lstrip("0123456789-")
    example = f"{near or 'my'}-plugin" if not near or keyword.iskeyword(near) else near
    return f"use letters, digits and dashes, a letter first and no word of Python's, such as {example!r}"


def _refuse_taken(name: PluginName, kind: PluginKind, plugins: Plugins) -> None:
    plugins.load()
    kinds = (GROUPS[kind], "parts") if kind == "algorithm" else (GROUPS[kind],)
    for entry in plugins.installed:
        if entry.kind in kinds and normalised(entry.name.removeprefix(_SLOT)) == name.entry:
            noun = KINDS[entry.kind].noun
            raise ConfigError(f"{noun} {entry.name!r} exists: {entry.distribution} has it", fix="choose another name")
    if (version := _installed_version(name.distribution)) is not None:
        raise ConfigError(
            f"{name.distribution} {version} is installed, and a new one would replace it", fix="choose another name"
        )
    if find_spec(name.package) is not None:
        raise ConfigError(
            f"there is a package {name.package}, and one of {name.distribution} would hide it",
            fix="choose another name",
        )


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
