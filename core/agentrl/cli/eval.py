"""``agentrl eval``: measure a checkpoint on held-out tasks."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentrl.cli.completion import complete_checkpoint
from agentrl.cli.output import print_json
from agentrl.cli.root import App
from agentrl.cli.settings import split_arguments
from agentrl.reporting.plain import cost_lines, reward_text

if TYPE_CHECKING:
    from agentrl.config.loader import Resolved
    from agentrl.config.models import Config
    from agentrl.plugins.manager import Plugins
    from agentrl.training.evaluation import Evaluation

__all__ = ["evaluate", "named"]

_EPILOG = """\b
Examples:
  agentrl eval runs/quickstart/checkpoints/step-000060
  agentrl eval runs/quickstart evaluation.tasks=500
  agentrl eval Qwen/Qwen3-0.6B agent=math tasks.eval=gsm8k.jsonl
  agentrl eval gpt-4o agent=math inference.backend=openai
"""


@click.command("eval", epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[CHECKPOINT] [KEY=VALUE]...", shell_complete=complete_checkpoint)
@click.option("--config", "-c", "file", type=click.Path(path_type=Path), help="A YAML file of settings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def evaluate(app: App, arguments: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Measure CHECKPOINT on the held-out tasks, sampled and greedily.

    CHECKPOINT is a folder that a run saved, a run folder (then its newest), or any model. A checkpoint in
    its run folder is measured with the run's own settings, agent and tasks, unless --config names others. With
    inference.backend=openai it is a model of the endpoint at inference.backend.url.

    The episodes are kept in a folder RUN-eval, RUN-eval-2, … beside the run's, or in run.dir.
    """
    from agentrl.cli.settings import located
    from agentrl.config import resolve_config, unused_by_evaluation
    from agentrl.reporting.reporter import default_reporter
    from agentrl.training.backends import is_chat
    from agentrl.training.trainer import Trainer

    given, settings = split_arguments(arguments, "checkpoint")
    if given is None:
        given, settings = _by_setting(settings)
    found = _find(given)
    resolved = located(resolve_config(file or found.config, *settings, model=found.model), app.plugins)
    resolved = named(resolved, app.plugins)
    config = resolved.config
    with Trainer(config, plugins=app.plugins, reporter=default_reporter(tracebacks=app.debug)) as trainer:
        for key in unused_by_evaluation(resolved.provenance, endpoint=is_chat(config, app.plugins)):
            trainer.reporter.warning(str(key))
        measured = trainer.evaluate()
    _print(config, measured, as_json)


@dataclass(frozen=True)
class _Found:
    """The model to measure, and the settings file of the run that saved it."""

    model: str | None = None
    config: Path | None = None


def _by_setting(settings: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The model where a setting names its folder, as the argument would, and the other settings."""
    named = [each for each in settings if each.startswith(("model=", "model.name="))]
    path = Path(os.path.expanduser(named[-1].partition("=")[2])) if named else None
    if path is None or not path.is_dir():
        return None, settings
    return str(path), tuple(each for each in settings if each not in named)


def _find(given: str | None) -> _Found:
    if given is None:
        return _Found()
    path = Path(os.path.expanduser(given))
    if (path / "config.yaml").is_file():
        return _newest(path)
    beside, here = path.resolve().parent.parent / "config.yaml", Path.cwd().resolve()
    if beside.is_relative_to(here):
        beside = beside.relative_to(here)  # as what is printed is written
    return _Found(given, beside if path.is_dir() and beside.is_file() else None)


def _newest(run: Path) -> _Found:
    from agentrl.errors import ConfigError
    from agentrl.runs.reader import Run

    checkpoint = Run(run).newest_checkpoint()
    if checkpoint is None:
        raise ConfigError(f"the run {run} has saved no checkpoint", fix="name a model folder")
    return _Found(str(checkpoint.path), run / "config.yaml")


def _print(config: Config, measured: Evaluation, as_json: bool) -> None:
    if as_json:
        print_json({"agent": config.agent.name, "model": config.model.name, **measured.to_json()})
        return
    tasks = config.tasks.eval.name if config.tasks.eval else ""
    rejected = f", {measured.rejected} rejected" if measured.rejected else ""
    click.echo(f"{config.agent.name} on {tasks}, {measured.episodes} episodes, {measured.failed} failed{rejected}")
    click.echo(f"held-out reward, sampled: {reward_text(measured.sampled)}")
    greedy = "not measured" if measured.greedy is None else reward_text(measured.greedy)
    click.echo(f"held-out reward, greedy: {greedy}")
    if measured.parts:
        parts = (f"{name} {reward_text(value)}" for name, value in sorted(measured.parts.items()))
        click.echo(f"parts, sampled: {', '.join(parts)}")
    for line in cost_lines(measured.cost):
        click.echo(line)
    click.echo(f"episodes: {measured.folder}")


_KEYS = ("model.name", "inference.backend.model")
_HERE = "command line"


def named(resolved: Resolved, plugins: Plugins, *, do: str = "measure", say: str = "agentrl eval MODEL") -> Resolved:
    """``resolved`` with one name for the model: a chat backend's own key, unless only the other is from here.

    ``do`` says what is done with the model, and ``say`` how it is named. Raises ``ConfigError`` where the command line
    has both, where nobody has named one, and for the name of an agent.
    """
    from agentrl.errors import ConfigError
    from agentrl.training.backends import is_chat, named_by_endpoint

    if not is_chat(resolved.config, plugins):
        return resolved
    _refuse_nobody_s_choice(resolved, do, say)
    _refuse_agent(resolved, plugins)
    config = named_by_endpoint(resolved.config)
    of_model, of_backend = (resolved.provenance.get(key) == _HERE for key in _KEYS)
    given = resolved.config.model
    if of_model and of_backend and given.name != config.model.name:
        raise ConfigError(
            f"the model is named twice, as {given.name!r} and by inference.backend.model={config.model.name!r}",
            fix="leave one of them out",
        )
    return replace(resolved, config=config.model_copy(update={"model": given}) if of_model else config)


def _refuse_nobody_s_choice(resolved: Resolved, do: str, say: str) -> None:
    from agentrl.errors import ConfigError

    if all(resolved.provenance.get(key, "default") == "default" for key in _KEYS):
        raise ConfigError(
            f"nothing says which of the endpoint's models to {do}",
            fix=f"name the endpoint's model: {say}, or inference.backend.model=MODEL",
        )


def _refuse_agent(resolved: Resolved, plugins: Plugins) -> None:
    """Raise ``ConfigError`` for an agent's name, which ``agentrl train`` takes, where the model's is expected."""
    from agentrl.environments import entries_elsewhere
    from agentrl.errors import ConfigError

    name = resolved.config.model.name
    if resolved.provenance.get("model.name") != _HERE:
        return
    plugins.load()
    if any(agent.kind == "agents" and agent.is_called(name) for agent in (*plugins.installed, *entries_elsewhere())):
        raise ConfigError(
            f"{name!r} is an agent, and stands where the endpoint's model is named",
            fix=f"did you mean agent={name}? A model that is called so is inference.backend.model={name}",
        )
