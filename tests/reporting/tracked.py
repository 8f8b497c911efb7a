"""A run as trackers hear of it, with episodes that call tools and think."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.config.models import Config
from agentrl.gateway.contract import Call
from agentrl.plugins import Plugins
from agentrl.reporting.trackers import Trackers
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}
SUMMARY = Summary("completed", 4, 32, 960, 12.5, 0.25, 0.75, ledger={"received": 16, "trained": 12})


def episode(key: EpisodeKey, reward: float | None = 1.0, **changed: Any) -> Episode:
    """An episode of two calls: the policy thinks, calls a tool, and answers."""
    asked = [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{key.task} + 1?"}]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": f'{{"a": {key.task}, "b": 1}}'}}
    says = {"role": "assistant", "content": None, "reasoning_content": "Use the tool.", "tool_calls": [call]}
    answer = {"role": "assistant", "content": f"It is {key.task + 1}."}
    told = {"role": "tool", "tool_call_id": "c1", "content": str(key.task + 1)}
    first = Call("r1", None, {"messages": asked, "tools": [TOOL]}, says, "tool_calls", 20, 10, seconds=0.5)
    history = [*asked, {name: held for name, held in says.items() if name != "reasoning_content"}, told]
    second = Call("r2", "r1", {"messages": history, "tools": [TOOL]}, answer, "stop", 40, 5, seconds=0.25)
    outcome = "rewarded" if reward is not None else "failed"
    failure = None if reward is not None else Failure("agent", "it broke")
    whole = Episode(
        key, {"question": f"{key.task} + 1?"}, outcome, reward, calls=(first, second), failure=failure, seconds=1.5
    )
    return replace(whole, **changed)


def track(
    config: Config, steps: Iterable[int], resumed_from: int | None = None, outcome: str = "completed", first: float = 0
) -> list[str]:
    """Tell the trackers of ``config`` of a run: an evaluation after every second step, and of ``SUMMARY``.

    ``reward/mean`` of a step is ``first`` plus the step's number. Returns what the trackers had to say at their start.
    """
    path = config.run.dir / "mine"
    folder = RunFolder(path) if path.exists() else RunFolder.create(config)
    trackers = Trackers.build(Plugins(), config.trackers, pytest.fail)
    with trackers:
        trackers.start(replace(folder.info(config), resumed_from=resumed_from), config)
        if resumed_from is None:
            _evaluate(trackers, 0)
        for step in steps:
            for group in range(2):
                trackers.log_episode(episode(EpisodeKey("train", 2 * step + group, group, 0), version=step - 1))
            trackers.log_episode(episode(EpisodeKey("train", 2 * step, 0, 1), None, version=step - 1))
            trackers.log(step, {"reward/mean": first + step, "policy/entropy": float("nan")})
            if step % 2 == 0:
                _evaluate(trackers, step)
        trackers.finish(outcome, replace(SUMMARY, outcome=outcome))
    assert trackers.failed == []
    return trackers.notes


def _evaluate(trackers: Trackers, step: int) -> None:
    for phase in ("eval", "eval-greedy"):
        for task in range(3):
            trackers.log_episode(episode(EpisodeKey(phase, 3 * step + task, task, 0), task / 2, version=step))
    trackers.log(step, {"evaluation/reward": step / 4, "evaluation/episodes": 6})


def configured(place: Path, **tracker: Any) -> Config:
    """A config of a run in ``place`` with one tracker."""
    return Config.model_validate(
        {"run": {"dir": str(place / "runs"), "name": "mine"}, "trackers": [tracker], "agent": {"name": "math"}}
    )
