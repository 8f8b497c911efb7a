"""``agentrl new-plugin``: write the files of a new plugin."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from agentrl.cli.root import App
from agentrl.scaffold import PluginKind, next_commands, plugin_name, write_plugin

__all__ = ["new_plugin"]

_EPILOG = """\b
Examples:
  agentrl new-plugin my-agent --kind agent
  agentrl new-plugin my-reward --kind reward --into plugins
  agentrl new-plugin my-questions --kind tasks
"""


@click.command("new-plugin", epilog=_EPILOG)
@click.argument("name")
@click.option("--kind", type=click.Choice(get_args(PluginKind)), required=True, help="What the plugin provides.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="An existing folder to write it in; the current one by default.",
)
@click.pass_obj
def new_plugin(app: App, name: str, kind: PluginKind, into: Path) -> None:
    """Write a distribution agentrl-NAME that provides NAME, in a new folder of that name.

    The new plugin works as it is: it can be installed, is listed, passes its tests and takes part in training the
    bundled model `tiny`. Its code is short, and is meant to be replaced. The commands to go on with are printed.
    """
    from agentrl.cli.root import VERBS
    from agentrl.errors import ConfigError

    if kind == "command" and name.removeprefix("agentrl-") in VERBS:
        raise ConfigError(f"command {name!r} exists: agentrl has it", fix="choose another name")
    named = plugin_name(name, kind, app.plugins)
    folder = write_plugin(named, kind, into)
    click.echo(f"wrote {folder}, the {kind} {named.entry}; install, list, test and use it with")
    for command in next_commands(named, kind, folder):
        click.echo(f"  {command}")
