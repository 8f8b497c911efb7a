"""``agentrl list-agents`` and its sisters: the names of one kind, read without importing what they name."""

from __future__ import annotations

from collections.abc import Sequence

import click

from agentrl.cli.app import App
from agentrl.cli.output import broken_json, print_broken, print_columns, print_json
from agentrl.plugins.entries import Entry
from agentrl.plugins.kinds import KINDS

_ALL = "Load the hook plugins too, and list the names that they register at run time."


def _list_verb(kind: str, summary: str) -> click.Command:
    verb = f"list-{kind}"

    @click.command(verb, short_help=summary, help=f"{summary}\n\n{_HELP}", epilog=_EPILOG.format(verb=verb))
    @click.option("--all", "load", is_flag=True, help=_ALL)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    @click.pass_obj
    def command(app: App, load: bool, as_json: bool) -> None:
        plugins = app.plugins
        if load:
            plugins.load()
        entries = plugins.entries(kind)
        if as_json:
            print_json({kind: _as_json(entries), "broken": broken_json(plugins.broken)})
            return
        print_columns([(_reference(entry, entries), str(entry.distribution), entry.target) for entry in entries])
        print_broken(plugins.broken)
        if not entries:
            click.echo(f"no {KINDS[kind].noun} is installed", err=True)

    return command


_HELP = """\
Each line holds the name, the distribution that it comes from, and the object that it names. Nothing of
that is imported: a plugin that does not work is found out when it is used, or by `agentrl plugins --all`."""

_EPILOG = """\b
Examples:
  agentrl {verb}
  agentrl {verb} --all --json
"""


def _reference(entry: Entry, entries: Sequence[Entry]) -> str:
    """The shortest name that means ``entry`` alone."""
    claims = [other for other in entries if other.name == entry.name]
    return entry.name if len(claims) == 1 else entry.qualified


def _as_json(entries: Sequence[Entry]) -> list[dict[str, str]]:
    return [
        {
            "name": entry.name,
            "reference": _reference(entry, entries),
            "distribution": entry.distribution.name,
            "version": entry.distribution.version,
            "target": entry.target,
        }
        for entry in entries
    ]


list_agents = _list_verb("agents", "List the agents that can be trained.")
list_rewards = _list_verb("rewards", "List the reward functions.")
list_tasks = _list_verb("tasks", "List the task sets.")
list_models = _list_verb("models", "List the bundled models.")
list_algorithms = _list_verb("algorithms", "List the algorithms and their parts.")
list_backends = _list_verb("backends", "List the inference engines.")
list_trackers = _list_verb("trackers", "List where metrics can go.")
