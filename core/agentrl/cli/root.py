"""The root command: the global options, the table of verbs, and groups that import a verb when it is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agentrl.environ import DEBUG
from agentrl.errors import ConfigError, PluginError, near_matches

if TYPE_CHECKING:
    from agentrl.plugins.manager import Plugins

__all__ = ["App", "LazyGroup", "NearGroup", "Verb", "add_global_options", "global_options", "help_without_verb", "root"]


class App:
    """The global options of a command line, and the plugins that they leave. ``click.pass_obj`` gives it to a verb."""

    def __init__(self) -> None:
        self.debug = bool(os.environ.get(DEBUG))
        """Whether an error shows its traceback."""
        self._disabled: tuple[str, ...] = ()
        self._plugins: Plugins | None = None

    @property
    def plugins(self) -> Plugins:
        """The installed plugins, less those of ``-p no:NAME`` and ``AGENTRL_DISABLE_PLUGINS``."""
        if self._plugins is None:
            from agentrl.environments.environment import entries_elsewhere
            from agentrl.plugins.manager import Plugins

            self._plugins = Plugins(self._disabled, elsewhere=entries_elsewhere)
        return self._plugins

    @property
    def disabled(self) -> tuple[str, ...]:
        """The names of ``-p no:NAME``."""
        return self._disabled

    def disable(self, names: tuple[str, ...]) -> None:
        """Leave out plugins beside those that are left out already."""
        if names:
            self._disabled += names
            self._plugins = None


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


_LISTING = "agentrl.cli.listing"

VERBS = {
    "train": Verb("agentrl.cli.train:train", "Train the model behind an agent."),
    "sft": Verb("agentrl.cli.sft:sft", "Fine-tune the model on conversations, or on the episodes of a run."),
    "replay": Verb("agentrl.cli.replay:replay", "Score the episodes of a run again, or train from them."),
    "eval": Verb("agentrl.cli.eval:evaluate", "Measure a checkpoint on held-out tasks."),
    "serve": Verb("agentrl.cli.serve:serve", "Serve a model to agents that run elsewhere."),
    "export": Verb("agentrl.cli.export:export", "Write a checkpoint as a model for other programs."),
    "export-episodes": Verb(
        "agentrl.cli.export_episodes:export_episodes", "Write the episodes of a run for other programs."
    ),
    "runs": Verb("agentrl.cli.runs:runs", "List the runs in a folder, and how each of them is."),
    "watch": Verb("agentrl.cli.watch:watch", "Show a run live that another process trains."),
    "view": Verb("agentrl.cli.view:view", "Show runs in a web page, token by token."),
    "compare": Verb("agentrl.cli.compare:compare", "Show runs side by side: settings, rewards, time and tokens."),
    "episodes": Verb("agentrl.cli.episodes:episodes", "List the episodes of a run, by filter and order."),
    "episode": Verb("agentrl.cli.episode:episode", "Read one episode: what was said, what came of it, its tokens."),
    "config": Verb("agentrl.cli.config:config", "Show the keys of a configuration, and what they mean."),
    "doctor": Verb("agentrl.cli.doctor:doctor", "Find out whether an agent can be trained here."),
    "list-agents": Verb("agentrl.cli.listing:list_agents", "List the agents that can be trained."),
    "list-rewards": Verb(f"{_LISTING}:list_rewards", "List the reward functions."),
    "list-tasks": Verb(f"{_LISTING}:list_tasks", "List the task sets."),
    "list-models": Verb(f"{_LISTING}:list_models", "List the bundled models."),
    "list-algorithms": Verb("agentrl.cli.algorithms:list_algorithms", "List the algorithms and their parts."),
    "list-backends": Verb(f"{_LISTING}:list_backends", "List the inference engines."),
    "list-dialects": Verb(f"{_LISTING}:list_dialects", "List the wire protocols that the gateway serves."),
    "list-normalisers": Verb(f"{_LISTING}:list_normalisers", "List the rules for texts of the system that change."),
    "list-trackers": Verb(f"{_LISTING}:list_trackers", "List where metrics can go."),
    "env": Verb("agentrl.cli.env:env", "Make environments for plugins that cannot be installed here."),
    "new-plugin": Verb("agentrl.cli.new_plugin:new_plugin", "Start a plugin of your own."),
    "plugins": Verb("agentrl.cli.plugins:plugins", "Show what is installed, disabled, in conflict or broken."),
}

_EPILOG = """\b
Examples:
  agentrl train math
  agentrl train my_agent.py:MyAgent --config config.yaml training.steps=100
  agentrl list-agents
  agentrl COMMAND --help

\b
Exit codes: 0 done, 1 the run failed, 2 usage, 3 plugin or environment, 75 stopped by SIGTERM
and resumable, 130 interrupted.
"""


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from agentrl.plugins.entries import CORE, core_version

        click.echo(f"{CORE} {core_version()}")
        context.exit()


_VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)

root = LazyGroup(
    "agentrl",
    verbs=VERBS,
    params=[*global_options(), _VERSION],
    help="Train any LLM agent by reinforcement learning, by its registered name, without changing the agent.",
    epilog=_EPILOG,
    callback=help_without_verb,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
