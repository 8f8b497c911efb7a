"""From what was asked for to what is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.environments.recipes import recipe_here
from agentrl.environments.sources import Source, core_source, parse_source, plugin_source

if TYPE_CHECKING:
    from agentrl.plugins.manager import Plugins

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What pip does."""

    sources: tuple[Source, ...]
    """Core first."""
    uninstall: tuple[str, ...]
    """Distributions that are removed afterwards."""
    asks_inside: bool
    """Whether a recipe is looked for in what has been installed: then it, if there is one, says what else is."""


def plan(name: str, asked: Sequence[str], plugins: Plugins) -> Plan:
    """What the environment ``name`` consists of.

    ``asked`` are the user's own sources. Without them they are what a recipe of a plugin says that is installed here,
    else the distribution ``agentrl-name``. Raises ``ConfigError`` for a source that is none.
    """
    recipe = recipe_here(name, plugins)
    if asked:
        given = tuple(parse_source(text) for text in asked)
        core = next((source for source in given if source.is_core), None) or core_source()
        others = tuple(source for source in given if not source.is_core)
    else:
        core = core_source()
        wanted = recipe.requirements if recipe else (f"agentrl-{name}",)
        others = tuple(plugin_source(requirement, core) for requirement in wanted)
    return Plan((core, *others), recipe.uninstall if recipe else (), asks_inside=bool(asked) or recipe is None)
