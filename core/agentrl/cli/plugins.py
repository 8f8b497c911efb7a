"""``agentrl plugins``: what is installed, and what of it is disabled, in conflict or broken."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import click

from agentrl.cli.output import broken_json, print_broken, print_columns, print_json
from agentrl.cli.root import App
from agentrl.plugins.entries import Entry
from agentrl.plugins.kinds import KINDS
from agentrl.plugins.manager import Plugins

__all__ = ["plugins"]


@click.command(
    epilog="""\b
Examples:
  agentrl plugins
  agentrl plugins --all
  AGENTRL_DISABLE_PLUGINS=camel agentrl plugins --json
"""
)
@click.option(
    "--all", "load", is_flag=True, help="Import everything, list names registered at run time, say what fails."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def plugins(app: App, load: bool, as_json: bool) -> None:
    """Show what is installed, disabled, in conflict or broken.

    Without --all nothing is imported, so a plugin counts as broken only where its metadata says so.
    """
    installed = app.plugins
    if load:
        installed.load_everything()
    if as_json:
        print_json(_as_json(installed))
    else:
        _print(installed)


def _print(installed: Plugins) -> None:
    for distribution, entries in groupby(sorted(installed.installed, key=_by_distribution), lambda e: e.distribution):
        click.echo(distribution)
        print_columns(
            [(f"  {k}", ", ".join(e.name for e in of_kind)) for k, of_kind in groupby(entries, lambda e: e.kind)]
        )
    for entry, source in _disabled(installed):
        click.echo(f"disabled: {KINDS[entry.kind].noun} {entry.name} ({entry.distribution}), by {source}")
    for name in installed.missing:
        click.echo(f"disabled: {name}, which is not installed")
    for claims in installed.conflicts:
        choices = " or ".join(entry.qualified for entry in claims)
        click.echo(f"conflict: {KINDS[claims[0].kind].noun} {claims[0].name} is claimed twice: write {choices}")
    print_broken(installed.broken)


def _as_json(installed: Plugins) -> dict[str, Any]:
    return {
        "entries": [_entry_json(entry) for entry in sorted(installed.installed, key=_by_distribution)],
        "disabled": [{**_entry_json(entry), "by": source} for entry, source in _disabled(installed)],
        "disabled_but_missing": list(installed.missing),
        "conflicts": [
            {"kind": claims[0].kind, "name": claims[0].name, "references": [entry.qualified for entry in claims]}
            for claims in installed.conflicts
        ],
        "broken": broken_json(installed.broken),
    }


def _entry_json(entry: Entry) -> dict[str, str]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.distribution.name,
        "version": entry.distribution.version,
        "target": entry.target,
    }


def _by_distribution(entry: Entry) -> tuple[str, str, str]:
    return entry.distribution.name, entry.kind, entry.name


def _disabled(installed: Plugins) -> list[tuple[Entry, str]]:
    sources = ((entry, installed.disabled_by(entry)) for entry in installed.installed)
    return [(entry, source) for entry, source in sources if source]
