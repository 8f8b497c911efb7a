"""``agentrl compare``: runs side by side: what differs in their configs, and what came of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from agentrl.cli.completion import complete_run
from agentrl.cli.output import print_json
from agentrl.cli.selection import chosen_run
from agentrl.errors import ConfigError, one_line, shortened

if TYPE_CHECKING:
    from agentrl.runs.contract import MetricsLine
    from agentrl.runs.reader import Run

__all__ = ["compare"]

_EPILOG = """\b
Examples:
  agentrl compare quickstart longer
  agentrl compare runs/a runs/b elsewhere/runs/c
  agentrl compare a b --json | jq .differences
"""
_LATEST = 10
"""Steps over which the newest mean reward is taken: those of one step depend on its few tasks."""
_MEASURED = {
    "evaluation/reward": "held-out reward, sampled",
    "evaluation/reward_greedy": "held-out reward, greedy",
    "evaluation/loss": "held-out loss",
}
_TOKENS = {"sampled": "tokens/completion", "prompt": "tokens/prompt", "trained": "tokens/trained"}
_LEAST_CELL = 8
"""Characters that a cell has at least, however narrow the terminal is."""


@click.command(epilog=_EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Show RUNs, folders or names, side by side: the settings in which they differ, rewards, evaluations, time, tokens.

    Rewards are means of training steps, the first one and the last ten; evaluations are those on held-out tasks after
    each number of steps. Seconds and tokens are sums over all steps; the cost
    is that of the whole run, evaluations included.
    """
    if len(runs) < 2:
        raise ConfigError(f"there is nothing to compare {runs[0]!r} with", fix="name two runs or more")
    chosen = [chosen_run(each) for each in runs]
    described = [_described(run) for run in chosen]
    differences = _differences(chosen)
    if as_json:
        print_json({"runs": described, "differences": differences})
        return
    rows = [("", *(run["name"] for run in described)), *_rows(described, differences)]
    for line in _lines(rows):
        click.echo(line)


def _differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The keys in which the configs differ, and the value in each of the runs."""
    from agentrl.config.changes import changes

    first = runs[0]
    found: dict[str, list[Any]] = {}
    for index, run in enumerate(runs[1:], 1):
        for change in changes(first.config, run.config, first.path):
            found.setdefault(change.key, [change.before] * len(runs))[index] = change.after
    return dict(sorted(found.items()))


def _described(run: Run) -> dict[str, Any]:
    """What came of a run, as plain JSON."""
    lines = run.metrics()
    steps = [line for line in lines if not line.is_evaluation]
    rewards = [value for line in steps if (value := line.metrics.get("reward/mean")) is not None]
    info, state, last = run.info, run.state, rewards[-_LATEST:]
    summary = run.summary if state != "running" else None
    seconds, tokens = _sums(steps, "seconds/"), {name: _sum(steps, metric) for name, metric in _TOKENS.items()}
    in_steps = seconds.pop("step", 0.0)
    return {
        "name": run.name,
        "path": str(run.path),
        "state": state,
        "outcome": None if summary is None else summary.outcome,
        "agent": info.agent,
        "model": info.model,
        "steps": max((line.step for line in steps), default=0),
        "steps_to_do": info.steps,
        "reward_first": rewards[0] if rewards else None,
        "reward_last": sum(last) / len(last) if last else None,
        "reward_best": max(rewards, default=None),
        "evaluations": [_evaluation(line) for line in lines if line.is_evaluation],
        "seconds": {
            "run": None if summary is None else summary.seconds,
            "steps": in_steps,
            "step": in_steps / len(steps) if steps else None,
            **{f"in {name}": value for name, value in seconds.items()},
        },
        "tokens": {**tokens, "sampled a second": tokens["sampled"] / in_steps if in_steps else None},
        "episodes": _sum(steps, "rollout/episodes"),
        "cost": _cost(run),
    }


def _cost(run: Run) -> dict[str, float]:
    cost = run.cost
    return {"seconds": cost.seconds} | ({} if cost.money is None else {"money": cost.money}) if cost.numbers else {}


def _evaluation(line: MetricsLine) -> dict[str, Any]:
    measured = {name: line.metrics[name] for name in _MEASURED if name in line.metrics}
    return {"step": line.step, **{name.removeprefix("evaluation/"): value for name, value in measured.items()}}


def _sum(steps: Sequence[MetricsLine], name: str) -> float:
    return sum(line.metrics.get(name) or 0 for line in steps)


def _sums(steps: Sequence[MetricsLine], begin: str) -> dict[str, float]:
    """The sum of each metric of the steps that begins so and has no further parts, by the rest of its name."""
    names = dict.fromkeys(name for line in steps for name in line.metrics if name.startswith(begin))
    return {name.removeprefix(begin): _sum(steps, name) for name in names if name.count("/") == 1}


def _rows(described: Sequence[dict[str, Any]], differences: dict[str, list[Any]]) -> Iterator[tuple[str, ...]]:
    """The lines of the table: a label and a cell for each run; a heading is a label alone."""
    yield ("state", *(run["state"] for run in described))
    for name in ("agent", "model"):
        yield (name, *(run[name] for run in described))
    yield ("steps", *(f"{run['steps']}/{run['steps_to_do']}" for run in described))
    yield ("episodes", *(_number(run["episodes"]) for run in described))
    yield ("settings that differ",) if differences else ("no setting differs",)
    for key, values in differences.items():
        yield (f"  {key}", *(value if isinstance(value, str) else json.dumps(value) for value in values))
    yield ("mean reward",)
    for label, name in (("first step", "first"), (f"last {_LATEST} steps", "last"), ("best step", "best")):
        yield (f"  {label}", *(_number(run[f"reward_{name}"]) for run in described))
    for metric, title in _MEASURED.items():
        name = metric.removeprefix("evaluation/")
        found = [{each["step"]: each[name] for each in run["evaluations"] if name in each} for run in described]
        if any(found):
            yield (title,)
            for step in sorted(set().union(*found)):
                yield (f"  after step {step}", *(_number(values.get(step)) for values in found))
    for section in ("seconds", "tokens", "cost"):
        names = dict.fromkeys(name for run in described for name in run[section])
        if names:
            yield (section,)
        for name in names:
            yield (f"  {name}", *(_number(run[section].get(name)) for run in described))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e9 else f"{value:.4g}"


def _lines(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The table, no wider than the terminal as far as ``_LEAST_CELL`` allows."""
    count = max(map(len, rows)) - 1
    label = max(len(row[0]) for row in rows)
    most = None
    if sys.stdout.isatty():
        most = max(_LEAST_CELL, (shutil.get_terminal_size().columns - label) // count - 2)
    cells = [[one_line(cell) if most is None else shortened(one_line(cell), most) for cell in row[1:]] for row in rows]
    widths = [max(len(row[index]) for row in cells if row) for index in range(count)]
    for row, shown in zip(rows, cells, strict=True):
        padded = (cell.rjust(width) for cell, width in zip(shown, widths, strict=False))
        yield "  ".join([row[0].ljust(label), *padded]).rstrip()
