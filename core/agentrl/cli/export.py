"""``agentrl export``: a checkpoint as a model, or an adapter, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from agentrl.cli.completion import complete_checkpoint
from agentrl.cli.root import App

__all__ = ["export"]

_EPILOG = """\b
Examples:
  agentrl export runs/quickstart my-model
  agentrl export runs/with-lora/checkpoints/step-000060 my-adapter
  agentrl export runs/with-lora my-model --merge
"""


@click.command(epilog=_EPILOG)
@click.argument("checkpoint", shell_complete=complete_checkpoint)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Add an adapter to its base model, and write the whole model.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def export(app: App, checkpoint: str, out: Path, merge: bool, as_json: bool) -> None:
    """Write CHECKPOINT into the new folder OUT, as transformers and peft load it.

    CHECKPOINT is a folder that a run saved, or a run folder (then its newest). What only the run needs, such as the
    optimiser's state, is left out. An adapter stays one, and names its base model; with --merge it becomes a whole
    model, in the type of its base.
    """
    from agentrl.cli.output import print_json
    from agentrl.config.models import ModelSection
    from agentrl.extras import missing_extras
    from agentrl.inference.adapter_folder import is_adapter
    from agentrl.inference.model_folder import find_model

    with missing_extras():
        from agentrl.learner import export as exporting

        folder = find_model(app.plugins, ModelSection(name=checkpoint))
        exporting.export(folder, out.expanduser(), merge=merge)
    kind = "adapter" if is_adapter(folder) and not merge else "model"
    if as_json:
        print_json({"folder": str(out), "kind": kind, "from": str(folder)})
    else:
        click.echo(f"{kind} of {folder}: {out}")
