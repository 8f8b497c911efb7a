"""The ``agentrl`` command: verbs that are imported when they are used, never to be listed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

from agentrl.cli.app import App
from agentrl.cli.options import add_global_options
from agentrl.errors import ConfigError, PluginError, near_matches

__all__ = ["LazyGroup", "NearGroup", "Verb", "help_without_verb"]

_USAGE = 2


class Verb(NamedTuple):
    """One of core's own verbs."""

    target: str
    """``module:attribute`` of its click command."""
    help: str


@click.pass_context
def help_without_verb(context: click.Context) -> int:
    """The callback of a group that may be invoked alone: it shows what may follow, which is a usage error."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        return _USAGE
    return 0


class NearGroup(click.Group):
    """A group whose commands take the global options, and that names what is near an unknown one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        return command and add_global_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, *rest = args
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            path = f"{ctx.command_path} {name}".removeprefix(f"{ctx.find_root().command_path} ")
            raise ConfigError(f"there is no command {path!r}", fix=near_matches(name, self.list_commands(ctx)))
        return name, command, rest


class LazyGroup(NearGroup):
    """A group of core's verbs and of those in the entry-point group ``agentrl.commands``.

    A plugin's verb that has the name of one of core's, or of another plugin's, is called ``dist/name``.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, Verb], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._verbs, *_plugin_verbs(ctx, self._verbs)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._verbs:
            module, _, attribute = self._verbs[cmd_name].target.partition(":")
            return add_global_options(getattr(import_module(module), attribute))
        plugins = ctx.ensure_object(App).plugins
        if not plugins.has("commands", cmd_name):
            return None
        command = plugins.get("commands", cmd_name)
        if not isinstance(command, click.Command):
            raise PluginError(f"command {cmd_name!r} is no click command but of type {type(command).__name__}")
        return add_global_options(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in self._verbs.items()])
        if plugin_verbs := _plugin_verbs(ctx, self._verbs):
            with formatter.section("Commands of plugins"):
                formatter.write_dl(list(plugin_verbs.items()))


def _plugin_verbs(context: click.Context, taken: Mapping[str, Verb]) -> dict[str, str]:
    """Names of the verbs that plugins bring, and whose they are."""
    entries = context.ensure_object(App).plugins.entries("commands")
    claims = [*taken, *(entry.name for entry in entries)]
    return {
        entry.name if claims.count(entry.name) == 1 else entry.qualified: f"From {entry.distribution}."
        for entry in entries
    }
