"""``agentrl list-algorithms``: the presets with their parts, their sources and when to use them, and all parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from agentrl.cli.catalogue import described
from agentrl.cli.listing import ALL, EPILOG, HELP, about, entry_json, reference
from agentrl.cli.output import broken_json, print_broken, print_columns, print_json
from agentrl.cli.root import App
from agentrl.plugins.declared import given_to
from agentrl.plugins.entries import Entry
from agentrl.plugins.source import Sources

__all__ = ["list_algorithms"]

_SUMMARY = "List the algorithms and their parts."
_SLOTS: Final = (
    "shaping",
    "credit",
    "advantage",
    "filter",
    "normalisation",
    "correction",
    "objective",
    "penalties",
    "critic",
)
"""In the order that they are asked in."""


@click.command(short_help=_SUMMARY, help=f"{_SUMMARY}\n\n{HELP}", epilog=EPILOG.format(verb="list-algorithms"))
@click.option("--all", "load", is_flag=True, help=ALL)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_algorithms(app: App, load: bool, as_json: bool) -> None:
    plugins, sources = app.plugins, Sources()
    if load:
        plugins.load()
    presets, parts = plugins.entries("algorithms"), plugins.entries("parts")
    if as_json:
        listed = [{**entry_json(entry, presets), **_made_of(given_to(entry.target, sources))} for entry in presets]
        print_json(
            {
                "algorithms": listed,
                "parts": [entry_json(entry, parts) for entry in parts],
                "broken": broken_json(plugins.broken),
            }
        )
        return
    below = [list(_about_preset(entry, sources)) for entry in presets]
    below += [about(described(entry, sources)) for entry in parts]
    print_columns([*(_row(entry, presets) for entry in presets), *(_row(entry, parts) for entry in parts)], below)
    print_broken(plugins.broken)
    if not presets:
        click.echo("no algorithm is installed", err=True)


def _row(entry: Entry, entries: Sequence[Entry]) -> tuple[str, str, str]:
    return reference(entry, entries), str(entry.distribution), entry.target


def _about_preset(entry: Entry, sources: Sources) -> Iterator[str]:
    """The lines below the line of a preset."""
    made = _made_of(given_to(entry.target, sources))
    if (text := described(entry, sources).help) != "":
        yield text
    if made["parts"]:
        yield f"parts: {', '.join(map(_written, made['parts']))}"
    if made["use"]:
        yield f"when: {made['use']}"
    if made["sources"]:
        yield f"sources: {'; '.join(made['sources'])}"
    if made["command"] != "train":
        yield f"trained with by: agentrl {made['command']}"


def _made_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a preset was given its ``parts`` in the order of their slots, ``sources``, ``use`` and ``command``."""
    parts: list[Mapping[str, Any]] = []
    for slot in _SLOTS:
        chosen = given.get(slot)
        parts += [each for each in (chosen if isinstance(chosen, list | tuple) else [chosen]) if isinstance(each, dict)]
    sources = given.get("sources", ())
    return {
        "parts": parts,
        "sources": list(sources) if isinstance(sources, list | tuple) else [str(sources)],
        "use": str(given.get("use", "")),
        "command": str(given.get("command", "train")),
    }


def _written(part: Mapping[str, Any]) -> str:
    """A part as a configuration names it, with its keys where the preset gives it any."""
    keys = {key: value for key, value in part.items() if key != "name"}
    shown = ", ".join(f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items())
    return f"{part.get('name')} {{{shown}}}" if shown else str(part.get("name"))
