"""The names of a new plugin: each place that has one has a spelling of its own."""

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
    "agent",
    "reward",
    "tasks",
    "model",
    "backend",
    "dialect",
    "normaliser",
    "executor",
    "algorithm",
    "tracker",
    "scheduler",
    "command",
    "hooks",
]

GROUPS: dict[PluginKind, tuple[str, ...]] = {
    "agent": ("agents",),
    "reward": ("rewards",),
    "tasks": ("tasks",),
    "model": ("models",),
    "backend": ("backends",),
    "dialect": ("dialects",),
    "normaliser": ("normalisers",),
    "executor": ("executors",),
    "algorithm": ("algorithms", "parts"),
    "tracker": ("trackers",),
    "scheduler": ("schedulers",),
    "command": ("commands",),
    "hooks": (HOOKS,),
}
"""The entry-point groups, without their ``agentrl.``, in which a plugin of each kind declares its name."""

_SLOT = "advantage."
"""What the name of a new part of an algorithm begins with."""

_PREFIX = "agentrl-"
_VALID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class PluginName:
    """A plugin's name, in lower case with dashes between its words, and its other spellings."""

    entry: str
    """The name that a config chooses it by: ``my-agent``."""

    @property
    def distribution(self) -> str:
        """The name that it is installed by: ``agentrl-my-agent``."""
        return _PREFIX + self.entry

    @property
    def identifier(self) -> str:
        """The name as Python writes it: ``my_agent``."""
        return self.entry.replace("-", "_")

    @property
    def package(self) -> str:
        """The package that is imported: ``agentrl_my_agent``."""
        return f"agentrl_{self.identifier}"

    @property
    def camel(self) -> str:
        """The name as classes have it: ``MyAgent``."""
        return "".join(word.capitalize() for word in self.entry.split("-"))

    def class_of(self, noun: str) -> str:
        """The name of its class, which ends in ``noun``: ``MyAgent`` for the noun ``Agent``."""
        return self.camel if self.camel.endswith(noun) else self.camel + noun


def plugin_name(text: str, kind: PluginKind, plugins: Plugins) -> PluginName:
    """The name that ``text``, with or without ``agentrl-``, gives a new plugin of ``kind``.

    Raises ``ConfigError`` for a name that could not be imported, and for one that something installed has already.
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
    for entry in plugins.installed:
        if entry.kind in GROUPS[kind] and normalised(entry.name.removeprefix(_SLOT)) == name.entry:
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
