"""The root command and the table of verbs."""

from __future__ import annotations

import click

from agentrl.cli.group import LazyGroup, Verb, help_without_verb
from agentrl.cli.options import global_options

__all__ = ["root"]

_LISTING = "agentrl.cli.listing"

VERBS = {
    "train": Verb("agentrl.cli.train:train", "Train the model behind an agent."),
    "eval": Verb("agentrl.cli.eval:evaluate", "Measure a checkpoint on held-out tasks."),
    "config": Verb("agentrl.cli.config:config", "Show the keys of a configuration, and what they mean."),
    "doctor": Verb("agentrl.cli.doctor:doctor", "Find out whether an agent can be trained here."),
    "list-agents": Verb("agentrl.cli.list_agents:list_agents", "List the agents that can be trained."),
    "list-rewards": Verb(f"{_LISTING}:list_rewards", "List the reward functions."),
    "list-tasks": Verb(f"{_LISTING}:list_tasks", "List the task sets."),
    "list-models": Verb(f"{_LISTING}:list_models", "List the bundled models."),
    "list-algorithms": Verb(f"{_LISTING}:list_algorithms", "List the algorithms and their parts."),
    "list-backends": Verb(f"{_LISTING}:list_backends", "List the inference engines."),
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
Exit codes: 0 done, 1 the run failed, 2 usage, 3 plugin or environment, 130 interrupted.
"""


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from agentrl.plugins.versions import CORE, core_version

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
