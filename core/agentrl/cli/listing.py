"""``agentrl list-agents`` and its sisters: the names of one kind, read without importing what they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from agentrl.cli.app import App
from agentrl.cli.catalogue import described
from agentrl.cli.output import broken_json, print_broken, print_columns, print_json
from agentrl.plugins.declared import Declared
from agentrl.plugins.entries import Entry
from agentrl.plugins.kinds import KINDS
from agentrl.plugins.source import Sources

__all__ = ["ALL", "EPILOG", "HELP", "about", "entry_json", "reference"]

ALL = "Load the hook plugins too, and list the names that they register at run time."


def _list_verb(kind: str, summary: str) -> click.Command:
    verb = f"list-{kind}"

    @click.command(verb, short_help=summary, help=f"{summary}\n\n{HELP}", epilog=EPILOG.format(verb=verb))
    @click.option("--all", "load", is_flag=True, help=ALL)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.pass_obj
    def command(app: App, load: bool, as_json: bool) -> None:
        plugins = app.plugins
        if load:
            plugins.load()
        entries = plugins.entries(kind)
        if as_json:
            print_json({kind: [entry_json(entry, entries) for entry in entries], "broken": broken_json(plugins.broken)})
            return
        rows = [(reference(entry, entries), str(entry.distribution), entry.target) for entry in entries]
        print_columns(rows, [about(described(entry, Sources())) for entry in entries])
        print_broken(plugins.broken)
        if not entries:
            click.echo(f"no {KINDS[kind].noun} is installed", err=True)

    return command


HELP = """\
Each line holds the name, the distribution that it comes from, and the object that it names; below it stands what
the source says of it, and its settings with their defaults (`agentrl config` explains them). Nothing of that is
imported: a plugin that does not work is found out when it is used, or by `agentrl plugins --all`."""

EPILOG = """\b
Examples:
  agentrl {verb}
  agentrl {verb} --all --json
"""


def reference(entry: Entry, entries: Sequence[Entry]) -> str:
    """The shortest name that means ``entry`` alone."""
    claims = [other for other in entries if other.name == entry.name]
    return entry.name if len(claims) == 1 else entry.qualified


def about(found: Declared) -> list[str]:
    """What is told of a name below its line."""
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
list_algorithms = _list_verb("algorithms", "List the algorithms and their parts.")
list_backends = _list_verb("backends", "List the inference engines.")
list_trackers = _list_verb("trackers", "List where metrics can go.")
