"""What a new environment says of itself: its plugin's recipe, and whether its agents can be imported.

Both are asked for in the environment's own interpreter. The functions that run there, ``report_faults`` and
``report_recipe``, write their answer to a file as JSON, since what is imported may print. They need nothing but the
base dependencies of agentrl-core.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentrl.environments.contract import Recipe
from agentrl.environments.environment import LOG, Environment
from agentrl.environments.interpreters import child_environment, run_shown
from agentrl.errors import AgentRLError, PluginError
from agentrl.plugins import Plugins
from agentrl.plugins.entries import CORE, Broken, Distribution, Entry, core_version, normalised

__all__ = ["check_environment", "recipe_here", "recipe_inside", "report_faults", "report_recipe"]


def check_environment(
    environment: Environment, environ: Mapping[str, str], deadline: float, show: Callable[[str], None]
) -> list[Broken]:
    """Import the environment's agents in its interpreter, and return those that do not load, with the reason.

    ``environ`` holds the variables of the process, ``deadline`` is a time of ``time.monotonic()``, and ``show`` is
    given each line that is printed. Raises ``PluginError`` where agentrl-core is missing in the environment, does not
    load, or is of another version than the one that runs, and ``TimeoutError`` at the deadline.
    """
    if environment.core != core_version():
        there = f"{CORE} {environment.core}" if environment.core else f"no {CORE}"
        raise PluginError(
            f"what was installed brought {there} and this is {core_version()}",
            fix="the two have to be the same: install that version here, or name other sources with --from",
        )
    code = "import agentrl.worker; inspection.report_faults(path)"  # The worker's own imports are checked with it.
    answer = _ask(environment, code, environ, deadline, show)
    if isinstance(answer, str):
        raise PluginError(f"{CORE} does not run in the environment: {answer}", fix="name other sources with --from")
    return [Broken(name, Distribution(project, version), reason) for name, project, version, reason in answer["faults"]]


def recipe_here(name: str, plugins: Plugins) -> Recipe | None:
    """The recipe ``name`` of a plugin that is installed here, or ``None`` where no plugin has one.

    Raises ``PluginError`` where what the entry names is not a recipe.
    """
    if not plugins.has("environments", name):
        return None
    found = plugins.get("environments", name)
    recipe = found() if callable(found) else found
    if not isinstance(recipe, Recipe):
        raise PluginError(f"the recipe {name!r} is of type {type(recipe).__name__}", fix="it should be a Recipe")
    return recipe


def recipe_inside(
    environment: Environment, environ: Mapping[str, str], deadline: float, show: Callable[[str], None]
) -> Recipe | None:
    """The recipe that a plugin installed in ``environment`` has for it, or ``None`` where none has.

    The parameters are those of ``check_environment``. Raises ``PluginError`` where the recipe does not load.
    """
    if not any(entry.is_called(environment.name) for entry in environment.entries("environments")):
        return None
    answer = _ask(environment, f"inspection.report_recipe({environment.name!r}, path)", environ, deadline, show)
    if isinstance(answer, str):
        raise PluginError(f"the recipe {environment.name!r} in the environment does not load: {answer}")
    return Recipe(tuple(answer["requirements"]), tuple(answer["uninstall"]))


def _ask(
    environment: Environment, code: str, environ: Mapping[str, str], deadline: float, show: Callable[[str], None]
) -> dict[str, Any] | str:
    """What ``code`` writes to its ``path`` in the environment's interpreter, or why it could not, in a line."""
    with tempfile.TemporaryDirectory(prefix="agentrl-") as folder:
        path = Path(folder) / "answer.json"
        prelude = "import sys, pathlib; from agentrl.environments import inspection; path = pathlib.Path(sys.argv[1])"
        command = [str(environment.python), "-I", "-c", f"{prelude}\n{code}", str(path)]
        status, lines = run_shown(command, child_environment(environ), environment.path / LOG, deadline, show)
        if status:
            return lines[-1] if lines else f"exit code {status}"
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return answer


def report_faults(path: Path) -> None:
    """Write to ``path`` which plugins and agents of the interpreter that runs this do not load."""
    plugins = Plugins(environ={})
    plugins.load()
    agents = [entry for entry in plugins.entries("agents") if normalised(entry.distribution.name) != CORE]
    faults = [*plugins.broken, *(fault for entry in agents if (fault := _fault(plugins, entry)))]
    rows = [(fault.name, fault.distribution.name, fault.distribution.version, fault.reason) for fault in faults]
    path.write_text(json.dumps({"faults": rows}), encoding="utf-8")


def report_recipe(name: str, path: Path) -> None:
    """Write the recipe ``name`` of the interpreter that runs this to ``path``. Raises ``PluginError`` for none."""
    recipe = recipe_here(name, Plugins(environ={}))
    if recipe is None:
        raise PluginError(f"no plugin has a recipe {name!r}")
    path.write_text(json.dumps(asdict(recipe)), encoding="utf-8")


def _fault(plugins: Plugins, entry: Entry) -> Broken | None:
    try:
        plugins.get("agents", entry.qualified)
    except AgentRLError as error:
        return Broken(entry.name, entry.distribution, str(error))
    return None
