"""Recipes of plugins: of those installed here, and of those that a new environment has just been given."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.environments.contract import Recipe
from agentrl.environments.environment import Environment
from agentrl.environments.places import LOG
from agentrl.environments.processes import child_environment, run_shown
from agentrl.environments.sources import Source, parse_source
from agentrl.errors import PluginError

if TYPE_CHECKING:
    from agentrl.plugins.manager import Plugins

__all__ = ["recipe_here", "recipe_inside", "still_missing"]

_CODE = """
import sys, pathlib, agentrl.environments.inside as inside
inside.tell_recipe(sys.argv[1], pathlib.Path(sys.argv[2]))
"""


def recipe_here(name: str, plugins: Plugins) -> Recipe | None:
    """The recipe ``name`` of a plugin that is installed here. Raises ``PluginError`` where it is none."""
    if not plugins.has("environments", name):
        return None
    found = plugins.get("environments", name)
    recipe = found() if callable(found) else found
    if not isinstance(recipe, Recipe):
        raise PluginError(f"the recipe {name!r} is of type {type(recipe).__name__}", fix="it should be a Recipe")
    return recipe


def recipe_inside(
    environment: Environment, environ: dict[str, str], deadline: float, show: Callable[[str], None]
) -> Recipe | None:
    """The recipe that a plugin in ``environment`` has for it. Raises ``PluginError`` where it cannot be had."""
    if not any(entry.is_called(environment.name) for entry in environment.entries("environments")):
        return None
    with tempfile.TemporaryDirectory(prefix="agentrl-") as folder:
        path = Path(folder) / "recipe.json"
        command = [str(environment.python), "-I", "-c", _CODE, environment.name, str(path)]
        code, lines = run_shown(command, child_environment(environ), environment.path / LOG, deadline, show)
        if code:
            reason = lines[-1] if lines else f"exit code {code}"
            raise PluginError(f"the recipe {environment.name!r} in the environment does not load: {reason}")
        told = json.loads(path.read_text(encoding="utf-8"))
    return Recipe(tuple(told["requirements"]), tuple(told["uninstall"]))


def still_missing(recipe: Recipe, installed: Iterable[Source]) -> list[str]:
    """The requirements of ``recipe`` that none of the sources ``installed`` is, whichever version it asks for."""
    there = {source.project for source in installed}
    return [requirement for requirement in recipe.requirements if parse_source(requirement).project not in there]
