"""Checks of a whole configuration, beside those of its single keys."""

from __future__ import annotations

import math

from agentrl.config.models import Config
from agentrl.errors import ConfigError

__all__ = ["check_trainable"]


def check_trainable(config: Config) -> None:
    """Raise ``ConfigError`` for a configuration that cannot learn, though an evaluation may run with it."""
    if config.is_online and config.rollout.on_stale == "wait":
        raise ConfigError(
            "rollout.on_stale=wait cannot be with agent=online: a step would wait for people, whom nobody can hurry",
            fix="leave it out: the default is then mask, with max_staleness=4; or set it to mask or drop",
            key="rollout.on_stale",
        )
    episodes, updates = config.rollout.tasks_per_step * config.rollout.group_size, config.training.minibatches
    if updates > episodes:
        raise ConfigError(
            f"training.minibatches={updates} cannot be made of the {episodes} episodes of a step",
            fix=f"set training.minibatches to {episodes} or less, or raise rollout.tasks_per_step",
            key="training.minibatches",
        )
    override = config.rollout.override.get("temperature")
    temperature = config.rollout.temperature if override is None else override
    if temperature == 0:
        key = "rollout.temperature" if override is None else "rollout.override.temperature"
        raise ConfigError(
            f"{key}=0 samples all episodes of a group alike, so nothing can be learned from comparing them",
            fix=f"set {key} above 0",
        )
    if config.health.rolling_back:
        _check_evaluated(config)


def _check_evaluated(config: Config) -> None:
    """Raise ``ConfigError`` where there will never be an evaluated checkpoint to go back to."""
    rule = f"health.{config.health.rolling_back[0]}"
    if config.is_online:
        raise ConfigError(
            f"{rule}=rollback cannot be with agent=online, which evaluates nothing: only checkpoints that were "
            "evaluated are known to be good",
            fix="set it to stop",
            key=rule,
        )
    evaluated, saved, steps = config.evaluation.every, config.training.checkpoint_every, config.training.steps
    missing = "tasks.eval is null" if config.tasks.eval is None else "evaluation.every is 0" if not evaluated else None
    missing = missing or ("training.checkpoint_every is 0" if not saved else None)
    if not missing and steps and (both := math.lcm(evaluated, saved)) >= steps:
        missing = (
            f"with evaluation.every={evaluated} and training.checkpoint_every={saved} the first checkpoint that is "
            f"evaluated is that of step {both}, and training.steps is {steps}"
        )
        raise ConfigError(
            f"{rule}=rollback has no checkpoint to go back to: {missing}",
            fix="set evaluation.every and training.checkpoint_every to the same number below training.steps, or set "
            f"{rule}=stop",
            key=rule,
        )
    if missing:
        raise ConfigError(
            f"{rule}=rollback has no checkpoint to go back to: {missing}, and only "
            "checkpoints that were evaluated are known to be good",
            fix="name held-out tasks, evaluate and save checkpoints, or set it to stop",
        )
