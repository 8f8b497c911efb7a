"""How a run is, in the numbers that a list of runs shows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agentrl.costs.cost import Cost
from agentrl.errors import AgentRLError
from agentrl.runs.contract import MetricsLine, RunInfo, RunState
from agentrl.runs.reader import Run

__all__ = ["Standing", "begun", "mark", "standing"]

_RECENT = 10
"""Steps that throughput is measured over, the newest ones."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a run is. What it does not have, or what could not be read, is ``None``."""

    name: str
    started: float
    """When its config was written, in seconds since the epoch: the start, or that of the last resume."""
    state: RunState | None = None
    info: RunInfo | None = None
    steps: int = 0
    """Optimiser steps done."""
    step_reward: float | None = None
    """``reward/mean`` of the newest step that has it."""
    before: float | None = None
    """What was measured on held-out tasks before the first step: the reward, or of ``agentrl sft`` the loss."""
    after: float | None = None
    """The same by the newest evaluation."""
    evaluations: tuple[tuple[int, float], ...] = ()
    """Every evaluation: the steps done before, and what it measured."""
    tokens_per_second: float | None = None
    """Sampled tokens, or trained ones where nothing is sampled, over the time of the newest steps."""
    money: float | None = None
    """What the run has cost so far, where the config has prices."""
    ended: str | None = None
    """The outcome in the words of ``summary.json``, once there is one."""
    error: str | None = None
    """What could not be read, and what to do about it."""

    @property
    def measured(self) -> str:
        """The metric that evaluations measure: a reward, or a loss where conversations are imitated."""
        return "loss" if self.info is not None and self.info.kind == "imitation" else "reward"


def standing(name: str, run: Run) -> Standing:
    """How ``run`` is, which is shown as ``name``. What cannot be read is said in it, and raises nothing."""
    found = Standing(name, begun(run))
    told: dict[str, object] = {}
    try:
        state = told["state"] = run.state
        summary = run.summary if state != "running" else None
        told["ended"] = None if summary is None else summary.outcome
        told |= _measured(run.metrics())
        if summary is not None and summary.cost:  # With what came after the last line.
            told["money"] = Cost.from_json(summary.cost).money
        told["info"] = run.info
    except AgentRLError as error:
        told["error"] = str(error)
    return _with(found, told)


def mark(run: Run) -> tuple[object, ...]:
    """What changes whenever the standing of ``run`` does, told without reading a line of it."""
    try:
        state: object = run.state
    except AgentRLError as error:
        state = str(error)
    files = (run.path / name for name in ("config.yaml", "metrics.jsonl", "summary.json"))
    return (run.path, state, *(_size(each) for each in files))


def _with(found: Standing, told: dict[str, object]) -> Standing:
    from dataclasses import replace

    return replace(found, **told)  # type: ignore[arg-type]


def _measured(lines: list[MetricsLine]) -> dict[str, object]:
    steps = [line for line in lines if not line.is_evaluation]
    evaluations = sorted((line for line in lines if line.is_evaluation), key=lambda line: line.step)
    values = [(line.step, value) for line in evaluations if (value := _evaluated(line)) is not None]
    rewards = [value for line in steps if (value := line.metrics.get("reward/mean")) is not None]
    money = [value for line in lines if (value := line.metrics.get("cost/money")) is not None]
    return {
        "steps": max((line.step for line in steps), default=0),
        "step_reward": rewards[-1] if rewards else None,
        "before": values[0][1] if values and values[0][0] == 0 else None,
        "after": values[-1][1] if values else None,
        "evaluations": tuple(values),
        "tokens_per_second": _throughput(steps[-_RECENT:]),
        "money": sum(money) if money else None,
    }


def _evaluated(line: MetricsLine) -> float | None:
    value = line.metrics.get("evaluation/reward")
    return value if value is not None else line.metrics.get("evaluation/loss")


def _throughput(steps: list[MetricsLine]) -> float | None:
    tokens = [line.metrics.get("tokens/completion", line.metrics.get("tokens/trained")) for line in steps]
    seconds = [line.metrics.get("seconds/step") for line in steps]
    pairs = [(count, time) for count, time in zip(tokens, seconds, strict=True) if count is not None and time]
    return sum(count for count, _ in pairs) / sum(time for _, time in pairs) if pairs else None


def begun(run: Run) -> float:
    """When the config of ``run`` was written, in seconds since the epoch; 0 where that cannot be told."""
    try:
        return (run.path / "config.yaml").stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
