"""Making an environment: from what was asked for to a folder that is complete, or to an error that leaves no trace."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agentrl.environ import ENVIRONMENTS
from agentrl.environments.contract import Recipe
from agentrl.environments.environment import (
    LOG,
    Environment,
    Manifest,
    environment_at,
    environment_name,
    environments_folder,
    is_environment_folder,
    write_manifest,
)
from agentrl.environments.folders import emptied, held
from agentrl.environments.inspection import check_environment, recipe_here, recipe_inside
from agentrl.environments.interpreters import Interpreter, child_environment, find_interpreter, run_shown
from agentrl.environments.sources import Source, copied, core_source, parse_source, plugin_source, tidied
from agentrl.errors import ConfigError, PluginError, one_line, shortened

if TYPE_CHECKING:
    from agentrl.plugins.entries import Broken
    from agentrl.plugins.manager import Plugins

__all__ = [
    "Created",
    "CreationRequest",
    "Installation",
    "Narrator",
    "create_environment",
    "failure_of",
    "installation",
    "pip_environment",
    "still_missing",
]

_FREE_SPACE = f"free some space, or set {ENVIRONMENTS} to another disk"
_NO_SPACE_BYTES = 1 << 20
"""A disk with less than this that is free counts as full."""
_MOST_LINES = 3
_MOST_CHARACTERS = 300
_ERROR = re.compile(r"^\s*(?:ERROR|error): *")
_SUBPROCESS = "subprocess-exited-with-error"
_NOISE = re.compile(r"^(note: |hint: |\[notice\]|WARNING: |\$ )|^[\s╰╭─>|]*$")
_FIXES = (
    (r"No space left on device|Disk quota exceeded", _FREE_SPACE),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Max retries exceeded",
        "check the network; PIP_INDEX_URL names another index and --from a local folder",
    ),
    (r"ResolutionImpossible|conflicting dependencies", "they cannot be installed together: change what is asked for"),
    (
        r"No matching distribution found|from versions: none",
        "check the name and the version, or name a local folder, as in --from ./plugins/agentrl-NAME in a checkout",
    ),
)


@dataclass(frozen=True, slots=True)
class CreationRequest:
    """What the user of ``agentrl env create`` asks for."""

    name: str
    sources: tuple[str, ...] = ()
    """Folders and requirements; where there are none, the name decides."""
    editable: bool = False
    """Whether folders are installed as they are, so that later changes to them count."""
    python: str | None = None
    """The interpreter to make it of; ``None`` for this one."""
    replace: bool = False
    """Whether an existing environment of that name is replaced; what is not asked for anew is as it was in that one."""
    timeout_s: float = 1800
    """Seconds that all programs together may take."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What pip does in a new environment."""

    sources: tuple[Source, ...]
    """What is installed, agentrl-core first."""
    uninstall: tuple[str, ...]
    """Distributions that are removed afterwards."""
    asks_inside: bool
    """Whether a recipe is looked for in what has been installed; it then decides what else is installed and removed."""


@dataclass(frozen=True, slots=True)
class Created:
    """An environment that was made, and the plugins and agents that do not load in it."""

    environment: Environment
    faults: list[Broken]


class Narrator(Protocol):
    """Tells the user how the making of an environment proceeds."""

    def say(self, text: str) -> None:
        """Tell of a step that begins."""
        ...

    def show(self, line: str) -> None:
        """Show a line that a program has printed."""
        ...


def create_environment(request: CreationRequest, plugins: Plugins, narrator: Narrator) -> Created:
    """Make the environment that ``request`` asks for; it counts once it is complete.

    Raises ``ConfigError`` for a request that cannot be met, and ``PluginError`` where a program failed or did not end
    in time. Then everything is as before, except for the log of the attempt, which the message names.
    """
    name = environment_name(request.name)
    folder = environments_folder() / name
    request = _completed(request, folder)
    interpreter = find_interpreter(request.python, dict(os.environ))
    if Path(interpreter.path).is_relative_to(folder):
        raise ConfigError(f"{interpreter.path} is the environment's own", fix="name another with --python")
    todo = installation(name, request.sources, plugins)
    narrator.say(f"making the environment {name} of Python {interpreter.version} in {folder}")
    for source in todo.sources:
        narrator.say(f"installing {source}{', editable' if request.editable and source.folder else ''}")
    try:
        with held(folder), emptied(folder):
            return _Creation(folder, request, narrator).run(interpreter, todo)
    except OSError as error:
        raise _cannot_make(folder, error) from error


def _completed(request: CreationRequest, folder: Path) -> CreationRequest:
    """``request`` with what the environment that it replaces was made of; folders as absolute paths.

    Raises ``ConfigError`` where ``folder`` holds an environment that is not to be replaced, or something else.
    """
    if (existing := environment_at(folder)) is not None:
        if not request.replace:
            raise ConfigError(f"there is an environment {folder.name!r} already", fix=existing.remedy)
        before = existing.manifest
        if not request.sources:
            request = replace(request, sources=before.sources, editable=request.editable or before.editable)
        request = replace(request, python=request.python or before.interpreter)
    elif folder.exists() and not is_environment_folder(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something that is no environment", fix="move it, or take another name")
    return replace(request, sources=tuple(parse_source(text).text for text in request.sources))


def installation(name: str, asked: Sequence[str], plugins: Plugins) -> Installation:
    """What the environment ``name`` consists of.

    ``asked`` are the sources that the user names. Where there are none, the sources are those that a recipe of a plugin
    installed here asks for, else the distribution ``agentrl-NAME``. Raises ``ConfigError`` for a text that is none.
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
    uninstall = recipe.uninstall if recipe else ()
    return Installation((core, *others), uninstall, asks_inside=bool(asked) or recipe is None)


def still_missing(recipe: Recipe, installed: Sequence[Source]) -> list[str]:
    """The requirements of ``recipe`` whose project is not among ``installed``, in whichever version."""
    there = {source.project for source in installed}
    return [requirement for requirement in recipe.requirements if parse_source(requirement).project not in there]


def _cannot_make(folder: Path, error: OSError) -> PluginError:
    reason = ": ".join(filter(None, [error.strerror, error.filename])) or shortened(one_line(error), 300)
    fix = _FREE_SPACE if error.errno in {errno.ENOSPC, errno.EDQUOT} else f"set {ENVIRONMENTS} to another folder"
    return PluginError(f"cannot make the environment {folder.name!r} in {folder}: {reason}", fix=fix)


class _Creation:
    """The making of one environment in ``folder``, which is empty."""

    def __init__(self, folder: Path, request: CreationRequest, narrator: Narrator) -> None:
        self._folder = folder
        self._request = request
        self._narrator = narrator
        self._log = folder / LOG
        self._deadline = time.monotonic() + request.timeout_s
        self._environ = child_environment(pip_environment(os.environ))

    def run(self, interpreter: Interpreter, todo: Installation) -> Created:
        self._log.write_text("")
        self._run("python -m venv", [interpreter.path, "-I", "-m", "venv", str(self._folder)])
        asked = None if self._request.python is None else interpreter.path
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(interpreter.version, asked, self._request.sources, self._request.editable, created)
        self._install(todo.sources)
        uninstall = self._follow_recipe(todo, self._environment(manifest)) if todo.asks_inside else todo.uninstall
        if uninstall:
            self._pip("uninstall", "--yes", *uninstall)
        environment = self._environment(manifest)
        self._narrator.say("checking that its agents load")
        try:
            faults = check_environment(environment, self._environ, self._deadline, self._narrator.show)
        except TimeoutError as error:
            raise self._too_slow("importing its agents") from error
        write_manifest(self._folder, manifest)
        return Created(environment, faults)

    def _environment(self, manifest: Manifest) -> Environment:
        """The environment as it is now; such an object looks at what is installed only once."""
        return Environment(self._folder.name, self._folder, self._folder / "bin" / "python", manifest)

    def _install(self, sources: Sequence[Source]) -> None:
        with ExitStack() as stack:
            if self._request.editable:
                arguments = stack.enter_context(tidied(sources))
            else:
                copies = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentrl-"))
                arguments = copied(sources, Path(copies))
            self._pip("install", *arguments)

    def _follow_recipe(self, todo: Installation, environment: Environment) -> tuple[str, ...]:
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
            if shutil.disk_usage(self._folder).free < _NO_SPACE_BYTES:
                fix = _FREE_SPACE  # Not every program says so.
            raise PluginError(
                f"{what} failed: {reason}", fix="; ".join(filter(None, [fix, f"all of its output is in {self._log}"]))
            )

    def _too_slow(self, what: str) -> PluginError:
        return PluginError(
            f"{what} was not done after {self._request.timeout_s:g} s",
            fix=f"allow more with --timeout; its output is in {self._log}",
        )


def pip_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with the settings of pip that suit output into a pipe, unless the user has chosen others."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off", "PIP_NO_INPUT": "1"}
    # A user's configuration that installs into the user's own folder cannot work in an environment.
    return {**quiet, **environ, "PIP_USER": "0"}


class PipFailure(NamedTuple):
    """Why pip failed."""

    reason: str
    fix: str | None
    """What to do about it; ``None`` where that is not known."""


def failure_of(lines: Sequence[str]) -> PipFailure:
    """The reason that the output of pip gives for its failure, and what to do about it."""
    errors = [_ERROR.sub("", line) for line in lines if _ERROR.match(line) and _SUBPROCESS not in line]
    # Where a build failed, its own last line says why.
    builds = [before.strip() for before, line in pairwise(lines) if line.strip() == "[end of output]"]
    telling = [*builds[-1:], *errors] or [line.strip() for line in lines if not _NOISE.match(line)]
    reason = "; ".join(line[:_MOST_CHARACTERS] for line in telling[-_MOST_LINES:]) or "it said nothing"
    text = "\n".join(lines)
    return PipFailure(reason, next((fix for pattern, fix in _FIXES if re.search(pattern, text)), None))
