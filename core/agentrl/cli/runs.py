"""``agentrl runs``: the runs in a folder, and how each of them is."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.output import print_columns, print_json
from agentrl.cli.root import App
from agentrl.errors import printable

if TYPE_CHECKING:
    from agentrl.runs.reader import Run

__all__ = ["runs"]

_EPILOG = """\b
Examples:
  agentrl runs
  agentrl runs elsewhere/runs --json
  agentrl train --resume NAME
"""
_COLUMNS = ("name", "state", "steps", "reward", "tokens/s", "cost", "agent", "model", "started")
_OPTIONAL = ("tokens/s", "cost")
"""Columns that are shown where one of the runs has something in them."""
_TO_RESUME = ("interrupted", "failed", "killed")
_VERBS = {"training": "train", "imitation": "sft"}
"""The commands that resume runs, by the kind of run."""


@click.command(epilog=_EPILOG)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def runs(app: App, folder: Path | None, as_json: bool) -> None:
    """List the runs in FOLDER, by default `run.dir`, the last one that was started at the end.

    A run is running, completed, interrupted, failed, or killed, where no process writes to it and none has said how it
    ended. The steps are those done and those to do, and the reward is the mean on held-out tasks, before and now; of a
    run of `agentrl sft` it is the loss on held-out conversations. Tokens a second are those of the newest steps, the
    cost is that of the whole run where the config has prices.
    """
    from agentrl.config import load_config
    from agentrl.errors import ConfigError
    from agentrl.runs.folder import run_names
    from agentrl.runs.reader import Run

    if folder is not None and str(folder).startswith("run.dir="):  # As every other command has it.
        folder = Path(str(folder).removeprefix("run.dir="))
    place = load_config().run.dir if folder is None else folder
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", fix="name the folder that holds the runs, such as `runs`")
    listed = sorted((_described(Run(place / name)) for name in run_names(place)), key=lambda each: each["started"])
    if as_json:
        print_json({"runs": listed})
        return
    if listed:
        rows = [_COLUMNS, *map(_row, listed)]
        columns = [column for column in zip(*rows, strict=True) if column[0] not in _OPTIONAL or any(column[1:])]
        print_columns(list(zip(*columns, strict=True)), [[], *map(_below, listed)])
    else:
        click.echo(f"there are no runs in {place}", err=True)
    for kind, verb in _VERBS.items():
        if any(each["state"] in _TO_RESUME and each["kind"] == kind for each in listed):
            click.echo(f"resume one with `agentrl {verb} --resume NAME`", err=True)


def _described(run: Run) -> dict[str, Any]:
    """A run as plain JSON."""
    from agentrl.errors import AgentRLError

    described: dict[str, Any] = {
        "name": run.name,
        "path": str(run.path),
        "kind": "training" if (run.path / "checkpoints").is_dir() else "other",
        "state": None,
        "steps": None,
        "steps_to_do": None,
        "reward_before": None,
        "reward": None,
        "loss_before": None,
        "loss": None,
        "tokens_per_second": None,
        "agent": None,
        "model": None,
        "started": datetime.fromtimestamp((run.path / "config.yaml").stat().st_mtime).isoformat(timespec="seconds"),
        "outcome": None,
        "checkpoint": None,
        "cost": None,
        "error": None,
    }
    try:
        described |= _state(run)
        described |= _progress(run)
        described |= _speed(run)
        info = run.info
        described |= {"agent": info.agent, "model": info.model, "steps_to_do": info.steps}
        described["cost"] = run.cost.to_json(run.config.prices.currency)
        if described["kind"] != "other":
            described["kind"] = info.kind
    except AgentRLError as error:  # Of another version, or damaged: the others are listed all the same.
        described["error"] = str(error)
    return described


def _state(run: Run) -> dict[str, Any]:
    state, newest = run.state, run.newest_checkpoint()
    summary = None if state == "running" else run.summary
    return {
        "state": state,
        "outcome": None if summary is None else summary.outcome,
        "checkpoint": None if newest is None else str(newest.path),
    }


def _progress(run: Run) -> dict[str, Any]:
    steps, evaluations = run.steps(), sorted(run.evaluations(), key=lambda line: line.step)
    progress: dict[str, Any] = {"steps": max((line.step for line in steps), default=0)}
    for name in ("reward", "loss"):
        key = f"evaluation/{name}"
        values = [(line.step, line.metrics[key]) for line in evaluations if key in line.metrics]
        progress[f"{name}_before"] = values[0][1] if values and values[0][0] == 0 else None
        progress[name] = values[-1][1] if values else None
    return progress


def _speed(run: Run) -> dict[str, float | None]:
    """How fast the newest steps were."""
    from agentrl.view.standing import standing

    return {"tokens_per_second": standing(run.name, run).tokens_per_second}


def _row(described: dict[str, Any]) -> tuple[str, ...]:
    steps, to_do = described["steps"], described["steps_to_do"]
    is_training = described["kind"] != "other" and steps is not None
    return (
        described["name"],
        described["state"] or "?",
        f"{steps}/{'?' if to_do is None else to_do}" if is_training else "",
        _measured(described, "reward") or _measured(described, "loss"),
        "" if described["tokens_per_second"] is None else f"{described['tokens_per_second']:,.0f}",
        _money(described["cost"]),
        described["agent"] or "",
        described["model"] or "",
        described["started"].replace("T", " "),
    )


def _money(cost: dict[str, Any] | None) -> str:
    """What a run has cost, where its config has prices."""
    money = (cost or {}).get("money")
    return f"{money:.4g}" if isinstance(money, int | float) else ""


def _measured(described: dict[str, Any], name: str) -> str:
    """What was measured on held-out tasks or conversations, before and now."""
    before, now = described[f"{name}_before"], described[name]
    if now is None:
        return ""
    text = f"{now:.3f}" if before is None else f"{before:.3f} → {now:.3f}"
    return text if name == "reward" else f"{name} {text}"


def _below(described: dict[str, Any]) -> list[str]:
    """Why a run failed, and why it cannot be read."""
    outcome = described["outcome"] or ""
    told = (outcome if outcome.startswith("failed: ") else "", described["error"])
    return [printable(line) for line in told if line]
