"""``agentrl sft``: fine-tune a model on conversations, or on the episodes of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agentrl.cli.boundary import code_of
from agentrl.cli.completion import complete_data, complete_run
from agentrl.cli.root import App
from agentrl.cli.settings import split_arguments
from agentrl.cli.train import print_settings, print_summary, run_to_resume

if TYPE_CHECKING:
    from agentrl.config.ineffective import Ineffective
    from agentrl.config.loader import Resolved

__all__ = ["sft"]

_EPILOG = """\b
Examples:
  agentrl sft chats.jsonl
  agentrl sft chats.jsonl model=Qwen/Qwen3-0.6B sft.epochs=2 sft.held_out=0.1
  agentrl sft runs/quickstart --min-reward 1
  agentrl sft --resume runs/sft-chats-20261124-091500
  agentrl train math model=runs/sft-chats-20261124-091500
"""


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[DATA] [KEY=VALUE]...", shell_complete=complete_data)
@click.option("--config", "-c", "file", type=click.Path(path_type=Path), help="A YAML file of settings.")
@click.option(
    "--min-reward", type=float, help="Least reward of the episodes of a run that are imitated: sft.min_reward."
)
@click.option(
    "--resume",
    metavar="RUN",
    shell_complete=complete_run,
    help="Go on with a run that has ended, or was killed: its folder, its name, or `newest`.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show every setting and where it was set, and check the data without training."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document.")
@click.pass_obj
def sft(
    app: App,
    arguments: tuple[str, ...],
    file: Path | None,
    min_reward: float | None,
    resume: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Train the model to say what the assistant says in DATA.

    DATA is a file of JSON lines, each with `messages` in the form of the OpenAI API and perhaps `tools`, or a run, of
    which the episodes of training are imitated as they were sampled, token for token.

    Only what the assistant says is trained: its texts, tool calls and reasoning, and the token that ends a turn. The
    loss on a share of the conversations that is held out is measured before, between and after the steps. The run
    folder is one as any other: `agentrl train model=runs/NAME` goes on from it. After Ctrl-C the run saves what it has
    learned before it ends.
    """
    from agentrl.config import resolve_config
    from agentrl.errors import ConfigError
    from agentrl.reporting.reporter import default_reporter
    from agentrl.training.trainer import Trainer

    data, settings = split_arguments(arguments, "file or run")
    settings += () if data is None else (f"sft.data={data}",)
    settings += () if min_reward is None else (f"sft.min_reward={min_reward}",)
    run = None if resume is None else run_to_resume(resume, resolve_config(file, *settings).config.run.dir)
    source = file if file is not None or run is None else run / "config.yaml"
    resolved = resolve_config(source, *settings)
    dead = _dead(resolved, run)
    reporter = default_reporter(tracebacks=app.debug)
    with Trainer(resolved.config, plugins=app.plugins, reporter=reporter, run=run) as trainer:
        if dry_run:
            if dead:
                raise ConfigError("; ".join(map(str, dead)), fix="leave such keys out")
            chosen = trainer.check_sft()
        else:
            for key in dead:
                trainer.reporter.warning(str(key))
            summary = trainer.sft()
    if dry_run:
        print_settings(resolved, chosen)
        return 0
    print_summary(resolved.config, summary, as_json)
    return code_of(summary.outcome, summary.signal)


def _dead(resolved: Resolved, run: Path | None) -> list[Ineffective]:
    """Keys without effect that somebody wrote; the file of a run holds every key."""
    from agentrl.config import unused_by_imitation

    places = resolved.provenance.items()
    written = {key: place for key, place in places if run is None or not place.startswith("file ")}
    return unused_by_imitation(resolved.config, written)
