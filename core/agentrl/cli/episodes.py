"""``agentrl episodes``: the episodes of a run, by filter and order, as a table or as JSON lines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.completion import complete_run
from agentrl.cli.output import print_json_line
from agentrl.cli.selection import chosen_filters, chosen_run, episode_filters, nothing_found, sort_options
from agentrl.errors import one_line, shortened

if TYPE_CHECKING:
    from agentrl.runs.contract import EpisodeFilter, EpisodeRow, SortKey
    from agentrl.runs.reader import Run

__all__ = ["as_json_row", "episodes"]

_EPILOG = """\b
Examples:
  agentrl episodes
  agentrl episodes quickstart --phase train --step 12 --sort reward --descending
  agentrl episodes runs/quickstart --outcome failed --side agent
  agentrl episodes quickstart --text '"the answer is" 42' --limit 5
  agentrl episodes quickstart --max-reward 0 --json | jq .key
"""
_SHOWN = 25
"""Episodes in a table, unless ``--limit`` says otherwise."""
_PAGE = 1000
"""Episodes that are read at once where none can come between those that are there."""
_LEAST_WORDS = 12
"""Characters that the last column has at least; a narrower terminal loses other columns first."""


@click.command(epilog=_EPILOG)
@click.argument("run", required=False, shell_complete=complete_run)
@episode_filters
@sort_options
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Show at most N, or all of them with 0. By default {_SHOWN}, and all of them with --json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, as they are read.")
def episodes(
    run: str | None, sort: SortKey, descending: bool, limit: int | None, as_json: bool, **options: Any
) -> None:
    """List the episodes of RUN, a folder or a name, by default the training run that was started last.

    Those that have no such value come last where they are sorted. Look at one with `agentrl episode KEY`.
    """
    chosen, filters = chosen_run(run), chosen_filters(options)
    most = limit or None if limit is not None or as_json else _SHOWN
    rows = _read(chosen, filters, sort, descending, most)
    count = _print_lines(rows) if as_json else _print_table(list(rows))
    if not count:
        click.echo(nothing_found(chosen, filters), err=True)
    elif count == most and (matching := chosen.count(**filters)) > most:
        click.echo(f"{most:,} of {matching:,} episodes; --limit 0 shows all", err=True)


def _read(run: Run, filters: EpisodeFilter, sort: SortKey, descending: bool, most: int | None) -> Iterator[EpisodeRow]:
    """The episodes, at most ``most``; in the order of their commits they are read page by page."""
    if sort != "committed" or descending or most is not None:
        yield from run.episodes(sort=sort, descending=descending, limit=most, **filters)
        return
    offset = 0
    while rows := run.episodes(limit=_PAGE, offset=offset, **filters):
        yield from rows
        offset += len(rows)


def as_json_row(row: EpisodeRow) -> dict[str, Any]:
    """An episode of a list as plain JSON; the parts of its key stand beside it."""
    return {"key": str(row.key), **asdict(row.key), **{k: v for k, v in asdict(row).items() if k not in ("key", "id")}}


def _print_lines(rows: Iterable[EpisodeRow]) -> int:
    """A JSON object a line, as they are read; returns how many there were."""
    count = 0
    for row in rows:
        print_json_line(as_json_row(row))
        count += 1
    return count


def _print_table(rows: Sequence[EpisodeRow]) -> int:
    """A table that is no wider than the terminal; returns how many rows it has.

    Columns that the terminal has no room for are left out, and what went wrong is cut.
    """
    columns = {name: cells for name, cells in _columns(rows).items() if any(cells)}
    if sys.stdout.isatty():
        columns = _fitting(columns, shutil.get_terminal_size().columns)
    if rows:
        widths = [max(len(name), *map(len, cells)) for name, cells in columns.items()]
        for line in [list(columns), *zip(*columns.values(), strict=True)]:
            click.echo("  ".join(map(_justified, line, widths, columns)).rstrip())
    return len(rows)


def _fitting(columns: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """As many of ``columns`` as go into ``width`` characters, those that are wanted least left out first."""
    words = columns.pop("what", None)
    for name in _LEAST_WANTED:
        if _width(columns) + (2 + _LEAST_WORDS if words else 0) > width:
            columns.pop(name, None)
    if words is not None:
        columns["what"] = [shortened(text, max(_LEAST_WORDS, width - _width(columns) - 2)) for text in words]
    return columns


_LEAST_WANTED = ("version", "tokens", "calls", "seconds", "surprise", "advantage", "step", "fate", "outcome", "reward")
"""The columns that a narrow terminal loses, in this order."""
_WORDS = ("key", "outcome", "fate", "what")
"""Columns of words, which are flush left."""


def _columns(rows: Sequence[EpisodeRow]) -> dict[str, list[str]]:
    """The columns by name; one without a single value has only empty cells."""
    return {
        "key": [str(row.key) for row in rows],
        "step": ["" if row.trained_step is None else str(row.trained_step) for row in rows],
        "version": [str(row.version) for row in rows],
        "outcome": [row.outcome for row in rows],
        "fate": [(row.fate or "").replace("_", " ") for row in rows],
        "reward": _numbers(row.reward for row in rows),
        "advantage": _numbers(row.advantage for row in rows),
        "surprise": _numbers(row.surprise for row in rows),
        "calls": [str(row.call_count) for row in rows],
        "tokens": [f"{row.sampled_tokens:,}" for row in rows],
        "seconds": [f"{row.seconds:.2f}" for row in rows],
        "what": list(map(_what, rows)),
    }


def _numbers(values: Iterable[float | None]) -> list[str]:
    from agentrl.reporting.plain import reward_text

    return ["" if value is None else reward_text(value) for value in values]


def _what(row: EpisodeRow) -> str:
    """What went wrong."""
    if row.failure_reason is not None:
        return one_line(f"{row.failure_side}: {row.failure_reason}")
    return one_line(row.mistake or "")


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Characters of a line of ``columns``, with two spaces between them."""
    return sum(2 + max(len(name), *map(len, cells)) for name, cells in columns.items()) - 2


def _justified(cell: str, width: int, name: str) -> str:
    return cell.ljust(width) if name in _WORDS else cell.rjust(width)
