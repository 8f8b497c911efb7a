"""``agentrl list-agents`` and its sisters: the names of one kind, read without importing what they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from agentrl.cli.catalogue import described
from agentrl.cli.output import broken_json, print_broken, print_columns, print_json
from agentrl.cli.root import App
from agentrl.environments.environment import Environment, environments
from agentrl.plugins.declared import Declared
from agentrl.plugins.entries import Entry
from agentrl.plugins.kinds import KINDS
from agentrl.plugins.manager import Plugins
from agentrl.plugins.source import Sources

__all__ = ["ALL", "EPILOG", "HELP", "about", "entry_json", "list_agents", "reference"]

ALL = "Load the hook plugins too, and list the names that they register at run time."


def _list_verb(kind: str, summary: str, *others: str) -> click.Command:
    verb = f"list-{kind}"

    @click.command(verb, short_help=summary, help=f"{summary}\n\n{HELP}", epilog=EPILOG.format(verb=verb))
    @click.option("--all", "load", is_flag=True, help=ALL)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.pass_obj
    def command(app: App, load: bool, as_json: bool) -> None:
        plugins = app.plugins
        if load:
            plugins.load()
        found = {each: plugins.entries(each) for each in (kind, *others)}
        if as_json:
            listed = {each: [entry_json(entry, entries) for entry in entries] for each, entries in found.items()}
            print_json({**listed, "broken": broken_json(plugins.broken)})
            return
        entries = [entry for each in found.values() for entry in each]
        rows = [(reference(entry, found[entry.kind]), str(entry.distribution), entry.target) for entry in entries]
        print_columns(rows, [about(described(entry, Sources())) for entry in entries])
        print_broken(plugins.broken)
        if not entries:
            click.echo(f"no {KINDS[kind].noun} is installed", err=True)

    return command


HELP = """\
Each line holds the name, the distribution that it comes from, and the object that it names; below it are
its help and its settings with their defaults, as the source declares them (`agentrl config` explains them). Nothing is
imported: whether a plugin works shows when it is used, or with `agentrl plugins --all`."""

EPILOG = """\b
Examples:
  agentrl {verb}
  agentrl {verb} --all --json
"""


def reference(entry: Entry, entries: Sequence[Entry]) -> str:
    """The shortest name that means ``entry`` and no other of ``entries``."""
    claims = [other for other in entries if other.name == entry.name]
    return entry.name if len(claims) == 1 else entry.qualified


def about(found: Declared) -> list[str]:
    """The lines below the line of a name: its help, and its settings with their defaults."""
    settings = ", ".join(key.name if key.default is None else f"{key.name}={key.default}" for key in found.keys)
    return [line for line in (found.help, f"settings: {settings}" if settings else "") if line]


def entry_json(entry: Entry, entries: Sequence[Entry], sources: Sources | None = None) -> dict[str, Any]:
    """One of ``entries`` as plain data."""
    found = described(entry, sources or Sources())
    return {
        "name": entry.name,
        "reference": reference(entry, entries),
        "distribution": entry.distribution.name,
        "version": entry.distribution.version,
        "target": entry.target,
        "help": found.help,
        "settings": [
            {
                "name": key.name,
                "type": key.type,
                "required": key.default is None,
                "default": key.default,
                "help": key.help,
            }
            for key in found.keys
        ],
    }


list_rewards = _list_verb("rewards", "List the reward functions.")
list_tasks = _list_verb("tasks", "List the task sets.")
list_models = _list_verb("models", "List the bundled models.")
list_backends = _list_verb("backends", "List the inference engines.")
list_dialects = _list_verb("dialects", "List the wire protocols that the gateway serves.")
list_normalisers = _list_verb("normalisers", "List the rules for texts of the system that change.")
list_trackers = _list_verb("trackers", "List where metrics can go.")

_SUMMARY = "List the agents that can be trained."


@click.command(short_help=_SUMMARY, help=f"{_SUMMARY}\n\n{HELP}", epilog=EPILOG.format(verb="list-agents"))
@click.option("--all", "load", is_flag=True, help=ALL)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_agents(app: App, load: bool, as_json: bool) -> None:
    plugins = app.plugins
    if load:
        plugins.load()
    known = environments()
    listed = [*_here(plugins), *_elsewhere(plugins, known)]
    if as_json:
        print_json({"agents": [_as_json(each) for each in listed], "broken": [*_broken_json(plugins, known)]})
        return
    print_columns(
        [_row(each, listed) for each in listed], [about(described(each.entry, each.sources)) for each in listed]
    )
    print_broken(plugins.broken)
    for line in _broken_lines(known):
        click.echo(f"broken: {line}")
    if not listed:
        click.echo("no agent is installed", err=True)


@dataclass(frozen=True)
class _Listed:
    """An agent, and the interpreter that has it."""

    entry: Entry
    beside: tuple[Entry, ...]
    """The agents of the same interpreter."""
    environment: Environment | None = None
    """``None`` for this interpreter."""

    @property
    def sources(self) -> Sources:
        """The source of the modules that its interpreter has."""
        return Sources() if self.environment is None else Sources(self.environment.site_packages)


def _here(plugins: Plugins) -> Iterator[_Listed]:
    entries = plugins.entries("agents")
    return (_Listed(entry, entries) for entry in entries)


def _elsewhere(plugins: Plugins, known: tuple[Environment, ...]) -> Iterator[_Listed]:
    for environment in known:
        if environment.fault is None:
            entries = tuple(each for each in environment.entries("agents") if plugins.disabled_by(each) is None)
            yield from (_Listed(entry, entries, environment) for entry in entries)


def _row(each: _Listed, listed: list[_Listed]) -> tuple[str, str, str, str]:
    name, distribution = reference(each.entry, each.beside), str(each.entry.distribution)
    return name, distribution, each.entry.target, _place(each, listed)


def _place(each: _Listed, listed: list[_Listed]) -> str:
    """The environment that has an agent, and the setting that selects it where several have the name."""
    if each.environment is None:
        return ""
    place = f"in environment {each.environment.name}"
    if any(other.entry.name == each.entry.name and other.environment is not each.environment for other in listed):
        return f"{place}: agent.python={each.environment.python}"
    return place


def _as_json(each: _Listed) -> dict[str, Any]:
    name = None if each.environment is None else each.environment.name
    python = None if each.environment is None else str(each.environment.python)
    return {**entry_json(each.entry, each.beside, each.sources), "environment": name, "python": python}


def _broken_lines(known: tuple[Environment, ...]) -> Iterator[str]:
    for environment in known:
        if environment.fault:
            yield f"environment {environment.name}: {environment.fault} ({environment.remedy})"
        else:
            yield from (f"{plugin} in environment {environment.name}" for plugin in environment.broken)


def _broken_json(plugins: Plugins, known: tuple[Environment, ...]) -> Iterator[Mapping[str, str | None]]:
    yield from ({**each, "environment": None} for each in broken_json(plugins.broken))
    for environment in known:
        if environment.fault:
            reason = f"{environment.fault} ({environment.remedy})"
            yield {
                **dict.fromkeys(["name", "distribution", "version"]),
                "reason": reason,
                "environment": environment.name,
            }
        else:
            yield from ({**each, "environment": environment.name} for each in broken_json(environment.broken))
