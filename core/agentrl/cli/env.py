"""``agentrl env``: environments for plugins that cannot be installed beside the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.completion import complete_environment
from agentrl.cli.output import broken_json, print_columns, print_json
from agentrl.cli.root import App, NearGroup, help_without_verb
from agentrl.environments.environment import Environment
from agentrl.plugins.entries import CORE, core_version

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from agentrl.environments.creating import Narrator

__all__ = ["as_columns", "env", "narrator", "notes", "summary", "to_json"]

_LONGEST_S = 1_000_000


env = NearGroup(
    "env",
    help="""\
Make, list and remove environments.

An environment is a folder with a Python of its own, agentrl-core and a plugin, or a framework that has none, which
cannot be installed beside the others. A plugin's agents are trained by their names, as those that are installed here
are; others with agent.python=NAME.""",
    callback=help_without_verb,
    invoke_without_command=True,
)


@env.command(
    short_help="Make one for a plugin or a framework.",
    epilog="""\b
Examples:
  agentrl env create camel
  agentrl env create camel --from ./my-checkout/agentrl-camel --editable
  agentrl env create camel --from agentrl-camel==0.1 --python python3.12 --replace
  agentrl env create agno --from agno --from ./my-agents
""",
)
@click.argument("name")
@click.option(
    "--from",
    "sources",
    metavar="PATH|REQUIREMENT",
    multiple=True,
    help="What to install instead of agentrl-NAME: a local folder, or what pip takes. May be repeated.",
)
@click.option("--editable", is_flag=True, help="Install local folders as they are, so that changes to them count.")
@click.option("--python", metavar="INTERPRETER", help="The Python to make it of; by default this one.")
@click.option("--replace", is_flag=True, help="Make it anew, of the same sources unless --from names others.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=_LONGEST_S),
    default=1800,
    show_default=True,
    help="Seconds that all of it may take.",
)
@click.pass_obj
def create(
    app: App, name: str, sources: tuple[str, ...], editable: bool, python: str | None, replace: bool, timeout: float
) -> None:
    """Make the environment NAME with the distribution agentrl-NAME in it, and what that says it needs there.

    It gets this version of agentrl-core. Where this one was installed from a local folder, core comes from there, and
    the plugin too if the folder has it; everything else comes from the package index, as pip is configured to find it.
    A plugin that is installed here may say what else NAME consists of. Folders are built from a copy.

    A framework that has no plugin gets one as well: --from names its package, and what else its agents need. They are
    then trained as they are, by agentrl train FILE.py:AGENT agent.python=NAME.

    If it fails or is interrupted, no new environment is left, and one that --replace would have replaced stays.
    """
    from agentrl.environments.creating import CreationRequest, create_environment
    from agentrl.errors import PluginError

    request = CreationRequest(name, sources, editable, python, replace, timeout)
    with narrator() as told:
        created = create_environment(request, app.plugins, told)
    made = created.environment
    if created.faults:
        raise PluginError(
            f"the environment {made.name!r} is made, but in it these do not load: "
            + "; ".join(map(str, created.faults)),
            fix=f"{made.python} -m pip installs what is missing",
        )
    for line in summary(made):
        click.echo(line)


@env.command(
    "list",
    short_help="Show the environments and what is in them.",
    epilog="""\b
Examples:
  agentrl env list
  agentrl env list --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_environments(as_json: bool) -> None:
    """List the environments: Python, agentrl-core, plugins, agents and folder of each."""
    from agentrl.environments import environments, environments_folder, incomplete

    known, unfinished = environments(), incomplete()
    if as_json:
        print_json(to_json(known, unfinished))
        return
    print_columns([as_columns(each) for each in known])
    for note in notes(known, unfinished):
        click.echo(note)
    if not known and not unfinished:
        click.echo(f"there is no environment in {environments_folder()}", err=True)


@env.command(
    short_help="Delete one.",
    epilog="""\b
Examples:
  agentrl env remove camel
""",
)
@click.argument("name", shell_complete=complete_environment)
def remove(name: str) -> None:
    """Remove the environment NAME and everything in its folder, without asking."""
    from agentrl.environments.folders import remove_environment

    click.echo(f"removed {remove_environment(name)}")


def as_columns(environment: Environment) -> tuple[str, ...]:
    """One line of the table."""
    return (
        environment.name,
        f"Python {environment.manifest.python_version}",
        f"{CORE} {environment.core}",
        ", ".join(map(str, environment.plugins)) or "no plugin",
        ", ".join(entry.name for entry in environment.entries("agents")) or "no agent",
        str(environment.path),
    )


def summary(made: Environment) -> Iterator[str]:
    """What a new environment holds, where it is, and how its agents are trained."""
    held = [*map(str, made.plugins)] or [*made.manifest.sources] or ["no plugin"]
    yield f"{made.name}: {', '.join(held)} in {made.path}"
    if agents := [entry.name for entry in made.entries("agents")]:
        yield f"train: agentrl train {' or '.join(agents)}"
    elif not made.plugins:
        yield f"train: agentrl train my_agent.py:MyAgent agent.python={made.name}"


def notes(known: Sequence[Environment], unfinished: Sequence[Path]) -> Iterator[str]:
    """What is wrong with an environment, and the command that mends it."""
    for environment in known:
        if environment.fault:
            yield f"broken: {environment.name}: {environment.fault} ({environment.remedy})"
        elif environment.core != core_version():
            versions = f"{CORE} {environment.core} and this is {core_version()}"
            yield f"outdated: {environment.name} has {versions} ({environment.remedy})"
        for plugin in environment.broken:
            yield f"broken: {plugin} in environment {environment.name}"
    for folder in unfinished:
        yield f"incomplete: {folder} (agentrl env create {folder.name}, or agentrl env remove {folder.name})"


def to_json(known: Sequence[Environment], unfinished: Sequence[Path]) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "core": core_version(),
        "environments": [_environment_json(environment) for environment in known],
        "incomplete": [{"name": folder.name, "path": str(folder)} for folder in unfinished],
    }


def _environment_json(environment: Environment) -> dict[str, Any]:
    return {
        "name": environment.name,
        "path": str(environment.path),
        "python": str(environment.python),
        "python_version": environment.manifest.python_version,
        "core": environment.core,
        "is_current": environment.core == core_version(),
        "fault": environment.fault,
        "plugins": [{"name": each.name, "version": each.version} for each in environment.plugins],
        "agents": [entry.name for entry in environment.entries("agents")],
        "broken": broken_json(environment.broken),
        "from": list(environment.manifest.sources),
        "editable": environment.manifest.editable,
        "created": environment.manifest.created,
    }


class _Plain:
    """Lines on stderr."""

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def show(self, line: str) -> None:
        click.echo(f"  {line}", err=True)


class _Live:
    """The newest line of output beside a spinner; what is said scrolls past above it."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console = console
        self._status = status

    def say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))
        self._status.update(Text(text, overflow="ellipsis", no_wrap=True))

    def show(self, line: str) -> None:
        from rich.text import Text

        if line.strip():
            self._status.update(Text(line.strip(), overflow="ellipsis", no_wrap=True))


@contextmanager
def narrator() -> Iterator[Narrator]:
    """Tells on stderr, in the way that fits where it goes."""
    if not sys.stderr.isatty():
        yield _Plain()
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield _Live(console, status)
