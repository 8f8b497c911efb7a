"""``agentrl train``: train the model behind an agent."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.boundary import code_of
from agentrl.cli.completion import complete_run, complete_training
from agentrl.cli.output import print_columns
from agentrl.cli.root import App
from agentrl.cli.settings import split_arguments

if TYPE_CHECKING:
    from agentrl.config.ineffective import Ineffective
    from agentrl.config.loader import Resolved
    from agentrl.config.models import Config
    from agentrl.runs.contract import Summary
    from agentrl.training.choices import Choice

__all__ = ["print_settings", "print_summary", "run_to_resume", "train"]

_EPILOG = """\b
Examples:
  agentrl train math
  agentrl train calculator --config config.yaml training.steps=100
  agentrl train my_agent.py:MyAgent --dry-run rollout.group_size=16
  agentrl train online serve.port=8000 training.steps=100000
  agentrl train --resume runs/math-20261124-091500 training.steps=100
"""


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[AGENT] [KEY=VALUE]...", shell_complete=complete_training)
@click.option("--config", "-c", "file", type=click.Path(path_type=Path), help="A YAML file of settings.")
@click.option(
    "--resume",
    metavar="RUN",
    shell_complete=complete_run,
    help="Go on with a run that has ended, or was killed: its folder, its name, or `newest`.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show every setting and where it was set, and check them without training."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document.")
@click.pass_obj
def train(
    app: App, arguments: tuple[str, ...], file: Path | None, resume: str | None, dry_run: bool, as_json: bool
) -> int:
    """Train the model behind AGENT: a registered name, pkg.mod:Obj, pkg.mod.Obj or file.py:Obj.

    `online` runs no agent: the model is served as by `agentrl serve`, and learns from the sessions that are rewarded.

    Settings are taken from KEY=VALUE on the command line, from AGENTRL_... variables, from the file of --config and
    from the defaults, the first one winning. After Ctrl-C the run saves what it has learned before it ends.

    With --resume the settings are those of the run, and steps after its newest checkpoint are repeated from stored
    episodes. A setting that KEY=VALUE names may change, such as training.steps; others that differ are refused.
    """
    from agentrl.cli.settings import located
    from agentrl.config import resolve_config

    agent, settings = split_arguments(arguments, "agent")
    run = None if resume is None else run_to_resume(resume, resolve_config(file, *settings, agent=agent).config.run.dir)
    source = file if file is not None or run is None else run / "config.yaml"
    resolved = located(resolve_config(source, *settings, agent=agent), app.plugins)
    if dry_run:
        return _dry_run(app, resolved, run)
    from agentrl.reporting.reporter import default_reporter
    from agentrl.training.trainer import Trainer

    reporter = default_reporter(tracebacks=app.debug)
    with Trainer(resolved.config, plugins=app.plugins, reporter=reporter, run=run) as trainer:
        for key in _dead(resolved, run):
            trainer.reporter.warning(str(key))
        summary = trainer.train()
    print_summary(resolved.config, summary, as_json)
    if resolved.config.is_online and summary.outcome == "interrupted" and summary.signal == "SIGTERM":
        return 0  # A service that is told to end has done what it was to do, and there is nothing to resume.
    return code_of(summary.outcome, summary.signal)


def _dead(resolved: Resolved, run: Path | None) -> list[Ineffective]:
    """Keys without effect; of a run that is resumed those of its own file, which holds every key, are left out."""
    from agentrl.config import ineffective_keys

    places = resolved.provenance.items()
    written = {key: place for key, place in places if run is None or not place.startswith("file ")}
    return ineffective_keys(resolved.config, written)


def run_to_resume(resume: str, place: Path) -> Path:
    """The folder of the run that ``--resume`` names: a folder, a name in ``place``, or the newest run in there."""
    from agentrl.runs.folder import newest_run
    from agentrl.runs.reader import open_run

    if resume == "newest" and not (place / resume).exists():
        return newest_run(place)
    return open_run(resume, runs=place).path


def _dry_run(app: App, resolved: Resolved, run: Path | None) -> int:
    """Print the settings, unless a run would refuse them before it starts, or would ignore some of them."""
    from agentrl.errors import ConfigError
    from agentrl.training.trainer import Trainer

    if dead := _dead(resolved, run):
        raise ConfigError("; ".join(map(str, dead)), fix="leave such keys out")
    with Trainer(resolved.config, plugins=app.plugins, run=run) as trainer:
        chosen = trainer.check()
    print_settings(resolved, chosen)
    return 0


def print_summary(config: Config, summary: Summary, as_json: bool) -> None:
    """Print what a run came to, as lines or as one JSON document."""
    from agentrl.cli.output import print_json
    from agentrl.reporting.plain import final_lines

    if as_json:
        print_json(summary.to_json())
        return
    for line in final_lines(summary, _evaluation(config, summary)):
        click.echo(line)


def _evaluation(config: Config, summary: Summary) -> str | None:
    """The command that measures the checkpoint again, where there is one and something to measure it on."""
    if summary.checkpoint is None or config.tasks.eval is None:
        return None
    from agentrl.cli.output import program

    return shlex.join([program(), "eval", summary.checkpoint])


def print_settings(resolved: Resolved, chosen: Sequence[Choice] = ()) -> None:
    """Print one line a key: the key, its value, and where it was set, or why a run has ``chosen`` it for `auto`."""
    values = resolved.config.model_dump(mode="json")
    settings = {key: (_at(values, key), place) for key, place in resolved.provenance.items()}
    for choice in chosen:
        inside = [key for key in settings if key.startswith(f"{choice.key}.")]
        written = next((settings.pop(key)[1] for key in [choice.key, *inside] if key in settings), "default")
        settings[choice.key] = (choice.value, f"{written}, {choice.why}")
    print_columns([(key, _shown(value), place) for key, (value, place) in settings.items()])


def _at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
