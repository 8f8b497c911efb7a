"""``agentrl doctor``: whether an agent can be trained here with a config, and what to do where it cannot."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from pathlib import Path

import click

from agentrl.cli.app import App
from agentrl.cli.completion import complete_training
from agentrl.cli.output import program
from agentrl.cli.settings import split_arguments

__all__ = ["doctor"]

_EPILOG = """\b
Examples:
  agentrl doctor
  agentrl doctor my_agent.py:MyAgent --config config.yaml rollout.group_size=16
  agentrl doctor camel-math --json
"""


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[AGENT] [KEY=VALUE]...", shell_complete=complete_training)
@click.option("--config", "-c", "file", type=click.Path(path_type=Path), help="A YAML file of settings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def doctor(app: App, arguments: tuple[str, ...], file: Path | None, as_json: bool) -> int:
    """Find out whether training AGENT with this config would work here, and what to do where it would not.

    Takes what `agentrl train` takes. Looks at versions, plugins, the model's chat template and the machine, starts
    the inference engine, runs an episode, which it shows as a conversation, and a few groups, and takes a step of
    training with them in memory.
    Nothing is written, but a model that is not here is downloaded. The exit code is 0 where training would work, else
    that of the first problem.
    """
    from agentrl.cli.diagnosis import Told
    from agentrl.config import resolve_config
    from agentrl.doctor.case import Case
    from agentrl.doctor.examination import examine

    agent, settings = split_arguments(arguments, "agent")
    resolved = resolve_config(file, *settings, agent=agent)
    case = Case(resolved, app.plugins)
    logging.getLogger("agentrl").addHandler(logging.NullHandler())  # What is worth a warning is among the findings.
    # Taken now: what agents print goes to stderr.
    told = Told(sys.stdout, _training(app, arguments, file), as_json=as_json, debug=app.debug)
    with told, contextlib.redirect_stdout(sys.stderr):
        diagnosis = examine(case, told)
    told.conclude(diagnosis)
    return diagnosis.exit_code


def _training(app: App, arguments: tuple[str, ...], file: Path | None) -> str:
    """The command that trains what is examined."""
    disabled = [part for name in app.disabled for part in ("-p", f"no:{name}")]
    config = [] if file is None else ["--config", str(file)]
    return shlex.join([program(), *disabled, "train", *arguments, *config])
