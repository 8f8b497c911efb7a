"""Options that work before and after the verb."""

from __future__ import annotations

import click

from agentrl.cli.app import App

__all__ = ["add_global_options", "global_options"]


def _disable(context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> None:
    for value in values:
        if not value.startswith("no:") or value == "no:":
            raise click.BadParameter(f"{value!r} should be no:NAME, as in -p no:camel")
    context.ensure_object(App).disable(tuple(value.removeprefix("no:") for value in values))


def _debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    app = context.ensure_object(App)
    app.debug = app.debug or value


def global_options() -> list[click.Option]:
    """New options ``-p no:NAME`` and ``--debug``."""
    return [
        click.Option(
            ["-p", "disabled_plugins"],
            metavar="no:NAME",
            multiple=True,
            expose_value=False,
            callback=_disable,
            help="Leave out a plugin: a distribution, an entry or dist/entry. May be repeated.",
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of an error."
        ),
    ]


def add_global_options(command: click.Command) -> click.Command:
    """Give ``command`` the global options that it has no options of its own for."""
    taken = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in global_options() if not taken & set(option.opts)]
    return command
