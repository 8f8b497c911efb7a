"""``agentrl config``: the keys of a configuration, what they take, and what they mean."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

from agentrl.cli.catalogue import Catalogue, Part, agents_elsewhere
from agentrl.cli.completion import complete_keys
from agentrl.cli.output import print_columns, print_json
from agentrl.cli.root import App
from agentrl.plugins.declared import Key

__all__ = ["config"]

_EPILOG = """\b
Examples:
  agentrl config
  agentrl config rollout
  agentrl config rollout.override training.schedule
  agentrl config inference.backend=vllm
  agentrl config --json
"""
_INDENT = "    "


@click.command(epilog=_EPILOG)
@click.argument("keys", nargs=-1, metavar="[KEY[=NAME]]...", shell_complete=complete_keys)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def config(app: App, keys: tuple[str, ...], as_json: bool) -> None:
    """Show the keys of a configuration: type, default and meaning of each.

    With KEY, that one or those below it. A KEY that names a part shows the keys of its default part too, and
    KEY=NAME those of another one, as far as the source of the part declares them. Nothing of a part is imported.
    """
    catalogue = Catalogue(app.plugins, agents_elsewhere())
    views = [_view(app, catalogue, key) for key in keys] or [_View(list(catalogue.all_keys()))]
    if as_json:
        print_json(_as_json(views))
        return
    for view in views:
        _print_keys(view.keys)
        for part in view.parts:
            part.print()
    if not keys:
        click.echo("more: agentrl config KEY=NAME shows the keys of a part, as in inference.backend=torch", err=True)


class _Named:
    """A part with a name, and its keys."""

    def __init__(self, catalogue: Catalogue, part: Part, name: str | None) -> None:
        found = catalogue.declared(part, name)
        self.part = part
        self.name = part.name if name is None else name
        self.help = "" if found is None else found.help
        self.known = found is not None
        self.keys = catalogue.keys_of(part, name)
        self.names = catalogue.names(part)

    def print(self) -> None:
        if self.name is not None:
            about = f": {self.help}" if self.help else ""
            click.echo(f"{self.part.key}={self.name}{about}")
            if self.keys:
                _print_keys(self.keys, _INDENT)
            else:
                click.echo(f"{_INDENT}{'it takes no keys' if self.known else 'nothing here says which keys it takes'}")
        if self.names:
            click.echo(f"names: {', '.join(self.names)}; their keys: agentrl config {self.part.key}=NAME")

    def to_json(self) -> dict[str, Any]:
        keys = [_key_json(key) for key in self.keys]
        return {"key": self.part.key, "name": self.name, "help": self.help, "keys": keys, "names": self.names}


class _View:
    """What is shown for one argument."""

    def __init__(self, keys: Sequence[Key], parts: Sequence[_Named] = ()) -> None:
        self.keys = keys
        self.parts = parts


def _view(app: App, catalogue: Catalogue, argument: str) -> _View:
    wanted, equals, name = argument.partition("=")
    parts = dict(_parts(catalogue))
    if equals and wanted not in parts:
        from agentrl.errors import ConfigError

        raise ConfigError(
            f"{wanted!r} names no part, so nothing is known of {name!r}", fix=f"parts: {', '.join(parts)}"
        )
    if equals:
        _refuse_unknown(app, parts[wanted], name)
        return _View([], [_Named(catalogue, parts[wanted], name)])
    listed = [*catalogue.all_keys(), *(key for part in parts.values() for key in catalogue.keys_of(part))]
    keys = list({key.name: key for key in listed if key.name == wanted or key.name.startswith(f"{wanted}.")}.values())
    if not keys:
        raise _unknown(wanted)
    part = parts.get(wanted)
    below = {} if part is None else {key.name for key in catalogue.keys_of(part)}
    return _View(
        [key for key in keys if key.name not in below], [] if part is None else [_Named(catalogue, part, None)]
    )


def _parts(catalogue: Catalogue) -> Iterator[tuple[str, Part]]:
    return ((part.key, part) for part, _ in catalogue.all_parts({}))


def _refuse_unknown(app: App, part: Part, name: str) -> None:
    """Raise what using the name would raise, if nobody has it; files of code have to be there, and are not run."""
    from agentrl.plugins.kinds import KINDS
    from agentrl.plugins.references import FileReference, NameReference, dotted_reference, no_such_file, parse_reference
    from agentrl.tasks.loading import reader_name

    reference = parse_reference(name)
    if isinstance(reference, FileReference) and not reference.path.is_file():
        raise no_such_file(reference.path, KINDS[part.kind].noun)
    if not isinstance(reference, NameReference):
        return
    if part.kind == "tasks" and reader_name(name) is not None:
        return
    if any(each.is_called(name) for each, _ in agents_elsewhere() if each.kind == part.kind):
        return
    if app.plugins.has(part.kind, name) or dotted_reference(name) is None:
        app.plugins.find(part.kind, name if name.startswith(part.prefix) else f"{part.prefix}{name}")


def _unknown(key: str) -> Exception:
    from agentrl.config.errors import unknown_key
    from agentrl.config.models import Config

    return unknown_key(Config, key.split("."))


def _print_keys(keys: Sequence[Key], indent: str = "") -> None:
    """A line a key; its help beside it, or below it where a person reads along."""
    rows = [(f"{indent}{key.name}", key.type, "required" if key.default is None else key.default) for key in keys]
    if not sys.stdout.isatty():
        print_columns([(*row, key.help) for row, key in zip(rows, keys, strict=True)])
        return
    width = max(40, shutil.get_terminal_size().columns)
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    for (name, type_, default), key in zip(rows, keys, strict=True):
        cells = click.style(name.ljust(widths[0]), bold=True), type_.ljust(widths[1]), default
        click.echo("  ".join(cells).rstrip())
        for line in textwrap.wrap(key.help, width - len(indent + _INDENT), break_long_words=False):
            click.echo(f"{indent}{_INDENT}{click.style(line, dim=True)}")


def _as_json(views: Sequence[_View]) -> dict[str, Any]:
    keys = {key.name: _key_json(key) for view in views for key in view.keys}
    return {"keys": list(keys.values()), "parts": [part.to_json() for view in views for part in view.parts]}


def _key_json(key: Key) -> dict[str, Any]:
    return {
        "key": key.name,
        "type": key.type,
        "required": key.default is None,
        "default": key.default,
        "choices": list(key.choices) or None,
        "help": key.help,
    }
