"""The config: every name in it has to be known, and every key to have an effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from agentrl.algorithms.building import build_algorithm
from agentrl.config import check_trainable, ineffective_keys
from agentrl.doctor.report import Finding, ok, warning
from agentrl.reporting.trackers import Trackers
from agentrl.training.backends import build_backend
from agentrl.training.parts import Parts, resolve_parts

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["config"]


def config(case: Case) -> Iterator[Finding]:
    """Resolve the config as a run would. Raises ``ConfigError`` or ``PluginError`` for what a run would refuse."""
    for key in ineffective_keys(case.config, case.resolved.provenance):
        yield warning(str(key), fix="leave it out")
    check_trainable(case.config)
    case.plugins.hook.agentrl_configure(config=case.config)
    case.doing(f"resolving agent {case.config.agent.name}, tasks and reward")
    case.parts = parts = resolve_parts(case.config, case.plugins)
    case.resolved = replace(case.resolved, config=parts.config)  # A run chooses what is open.
    case.resolved = replace(case.resolved, config=parts.config)
    case.backend = build_backend(parts, version=0, say=case.doing)
    case.algorithm = build_algorithm(case.plugins, case.config.algorithm, updates=case.config.training.minibatches)
    Trackers.build(case.plugins, case.config.trackers, warn=case.warn)
    yield _agent(parts)
    yield _tasks(parts)


def _agent(parts: Parts) -> Finding:
    config = parts.config
    where = f"of {config.agent.python}" if config.agent.python else "of this interpreter"
    how = f"in worker processes {where}" if config.runs_in_workers else "inline"
    reward = "its own" if config.reward is None else config.reward.name
    return ok(
        f"agent {config.agent.name} runs {how}; reward: {reward}",
        agent=config.agent.name,
        workers=config.runs_in_workers,
        reward=None if config.reward is None else config.reward.name,
    )


def _tasks(parts: Parts) -> Finding:
    config, held_out = parts.config, parts.eval_tasks
    text = f"tasks {config.tasks.train.name}: {len(parts.train_tasks):,}"
    if held_out is not None and config.tasks.eval is not None:
        text += f", held out {config.tasks.eval.name}: {len(held_out):,}"
    return ok(
        f"{text}; algorithm {config.algorithm.name}, backend {config.inference.backend.name}",
        train_tasks=len(parts.train_tasks),
        eval_tasks=None if held_out is None else len(held_out),
    )
