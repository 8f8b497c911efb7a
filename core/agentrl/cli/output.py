"""Results on stdout: aligned columns for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import click

from agentrl.errors import printable
from agentrl.plugins.entries import Broken

__all__ = ["broken_json", "print_broken", "print_columns", "print_json", "print_json_line", "program"]


def print_json(value: object) -> None:
    """One JSON document."""
    import json

    # Outside of its strings JSON has no character that is spelled out, and in them the spelling is JSON's.
    click.echo(printable(json.dumps(value, indent=2, ensure_ascii=False)))


def print_json_line(value: object) -> None:
    """One JSON document in one line, as programs read many of them."""
    import json

    click.echo(printable(json.dumps(value, ensure_ascii=False)))


def print_columns(rows: Sequence[Sequence[str]], below: Sequence[Sequence[str]] = ()) -> None:
    """Left-aligned columns, two spaces apart; lines of ``below`` are indented under their row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, lines in zip_longest(rows, below, fillvalue=()):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in lines:
            click.echo(f"    {line}")


def print_broken(broken: Sequence[Broken]) -> None:
    """One line for each plugin that cannot be used."""
    for plugin in broken:
        click.echo(f"broken: {plugin}")


def broken_json(broken: Sequence[Broken]) -> list[dict[str, str]]:
    """Plugins that cannot be used, as plain data."""
    return [
        {
            "name": plugin.name,
            "distribution": plugin.distribution.name,
            "version": plugin.distribution.version,
            "reason": plugin.reason,
        }
        for plugin in broken
    ]


def program() -> str:
    """The command that this process was started with, which need not be on the PATH."""
    return sys.argv[0] if Path(sys.argv[0]).name == "agentrl" else "agentrl"
