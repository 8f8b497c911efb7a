"""From what was asked for to what is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.environments.contract import Recipe
from agentrl.environments.sources import Source, core_source, parse_source, plugin_source
from agentrl.errors import PluginError

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


def plan(name: str, asked: Sequence[str], plugins: Plugins) -> Plan:
    """What the environment ``name`` consists of.

    ``asked`` are the user's own sources. Without them they are what a recipe of an installed plugin says, else the
    distribution ``agentrl-name``. Raises ``ConfigError`` for a source that is none.
    """
    recipe = _recipe(name, plugins)
    if asked:
        given = tuple(parse_source(text) for text in asked)
        core = next((source for source in given if source.is_core), None) or core_source()
        others = tuple(source for source in given if not source.is_core)
    else:
        core = core_source()
        wanted = recipe.requirements if recipe else (f"agentrl-{name}",)
        others = tuple(plugin_source(requirement, core) for requirement in wanted)
    return Plan((core, *others), recipe.uninstall if recipe else ())


def _recipe(name: str, plugins: Plugins) -> Recipe | None:
    if not plugins.has("environments", name):
        return None
    found = plugins.get("environments", name)
    recipe = found() if callable(found) else found
    if not isinstance(recipe, Recipe):
        raise PluginError(f"the recipe {name!r} is of type {type(recipe).__name__}", fix="it should be a Recipe")
    return recipe
