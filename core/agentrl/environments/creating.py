"""Making an environment."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.checking import check_environment
from agentrl.environments.environment import Environment
from agentrl.environments.folders import emptied, held
from agentrl.environments.interpreters import Interpreter, find_interpreter
from agentrl.environments.pip import FREE_SPACE, failure_of, pip_environment
from agentrl.environments.places import LOG, environment_name, environments_folder
from agentrl.environments.planning import Plan, plan
from agentrl.environments.processes import child_environment, run_shown
from agentrl.environments.recipes import recipe_inside, still_missing
from agentrl.environments.record import Record, write_record
from agentrl.environments.sources import Source
from agentrl.environments.staging import copied, tidied
from agentrl.environments.wishes import Wish, completed
from agentrl.errors import ConfigError, PluginError, one_line, shortened

if TYPE_CHECKING:
    from agentrl.plugins.entries import Broken
    from agentrl.plugins.manager import Plugins

__all__ = ["Created", "Narrator", "create_environment"]

_CRUMBS = 1 << 20


@dataclass(frozen=True, slots=True)
class Created:
    """An environment that was made, and what does not load in it."""

    environment: Environment
    faults: list[Broken]


class Narrator(Protocol):
    """Where is told how it goes."""

    def say(self, text: str) -> None:
        """Something that happens once."""
        ...

    def show(self, line: str) -> None:
        """A line of a program's output."""
        ...


def create_environment(wish: Wish, plugins: Plugins, narrator: Narrator) -> Created:
    """Make an environment, which counts once it is complete.

    Raises ``ConfigError`` for a wish that cannot be met, and ``PluginError`` where a program failed or was not done in
    time: then nothing has changed but the log, which the message names.
    """
    name = environment_name(wish.name)
    folder = environments_folder() / name
    wish = completed(wish, folder)
    interpreter = find_interpreter(wish.python, dict(os.environ))
    if Path(interpreter.path).is_relative_to(folder):
        raise ConfigError(f"{interpreter.path} is the environment's own", fix="name another with --python")
    todo = plan(name, wish.sources, plugins)
    narrator.say(f"making the environment {name} of Python {interpreter.version} in {folder}")
    for source in todo.sources:
        narrator.say(f"installing {source}{', editable' if wish.editable and source.folder else ''}")
    try:
        with held(folder), emptied(folder):
            return _Making(folder, wish, narrator).make(interpreter, todo)
    except OSError as error:
        raise _cannot_make(folder, error) from error


def _cannot_make(folder: Path, error: OSError) -> PluginError:
    reason = ": ".join(filter(None, [error.strerror, error.filename])) or shortened(one_line(error), 300)
    fix = FREE_SPACE if error.errno in {errno.ENOSPC, errno.EDQUOT} else f"set {ENVIRONMENTS} to another folder"
    return PluginError(f"cannot make the environment {folder.name!r} in {folder}: {reason}", fix=fix)


class _Making:
    """One environment on its way."""

    def __init__(self, folder: Path, wish: Wish, narrator: Narrator) -> None:
        self._folder = folder
        self._wish = wish
        self._narrator = narrator
        self._log = folder / LOG
        self._deadline = time.monotonic() + wish.timeout_s
        self._environ = child_environment(pip_environment(os.environ))

    def make(self, interpreter: Interpreter, todo: Plan) -> Created:
        self._log.write_text("")
        self._run("python -m venv", [interpreter.path, "-I", "-m", "venv", str(self._folder)])
        asked = None if self._wish.python is None else interpreter.path
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(interpreter.version, asked, self._wish.sources, self._wish.editable, created)
        self._install(todo.sources)
        uninstall = self._follow_recipe(todo, self._environment(record)) if todo.asks_inside else todo.uninstall
        if uninstall:
            self._pip("uninstall", "--yes", *uninstall)
        environment = self._environment(record)
        self._narrator.say("checking that its agents load")
        try:
            faults = check_environment(environment, self._environ, self._deadline, self._narrator.show)
        except TimeoutError as error:
            raise self._too_slow("importing its agents") from error
        write_record(self._folder, record)
        return Created(environment, faults)

    def _environment(self, record: Record) -> Environment:
        """What is there now; an object of this kind looks only once."""
        return Environment(self._folder.name, self._folder, self._folder / "bin" / "python", record)

    def _install(self, sources: Sequence[Source]) -> None:
        with ExitStack() as stack:
            if self._wish.editable:
                arguments = stack.enter_context(tidied(sources))
            else:
                copies = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentrl-"))
                arguments = copied(sources, Path(copies))
            self._pip("install", *arguments)

    def _follow_recipe(self, todo: Plan, environment: Environment) -> tuple[str, ...]:
        """Install what a recipe asks for that has come with the plugin, and return what is to be uninstalled."""
        try:
            recipe = recipe_inside(environment, self._environ, self._deadline, self._narrator.show)
        except TimeoutError as error:
            raise self._too_slow("reading its recipe") from error
        if recipe is None:
            return todo.uninstall
        if missing := still_missing(recipe, todo.sources):
            self._narrator.say(f"installing {', '.join(missing)}, as its recipe asks")
            self._pip("install", *missing)
        return recipe.uninstall

    def _pip(self, verb: str, *arguments: str) -> None:
        self._run(f"pip {verb}", [str(self._folder / "bin" / "python"), "-I", "-m", "pip", verb, *arguments])

    def _run(self, what: str, command: Sequence[str]) -> None:
        try:
            code, lines = run_shown(command, self._environ, self._log, self._deadline, self._narrator.show)
        except TimeoutError as error:
            raise self._too_slow(what) from error
        if code:
            reason, fix = failure_of(lines)
            if shutil.disk_usage(self._folder).free < _CRUMBS:
                fix = FREE_SPACE  # Not every program says so.
            raise PluginError(
                f"{what} failed: {reason}", fix="; ".join(filter(None, [fix, f"all of its output is in {self._log}"]))
            )

    def _too_slow(self, what: str) -> PluginError:
        return PluginError(
            f"{what} was not done after {self._wish.timeout_s:g} s",
            fix=f"allow more with --timeout; its output is in {self._log}",
        )
