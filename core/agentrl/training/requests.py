"""The groups that training asks for: which task and samples a group's ordinal stands for, and how its sessions sample.

A group's ordinal is the position of its task in the task order, so nothing else has to be kept to repeat it.
"""

from __future__ import annotations

from collections.abc import Callable

from agentrl.config.models import Config
from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.contract import EpisodeKey
from agentrl.rollout.dispatcher import GroupRequest
from agentrl.training.task_order import TaskOrder

__all__ = ["LARGEST_VERSION", "group_request", "training_session"]

LARGEST_VERSION = 2**31 - 1
"""Versions are stored in 32 bits."""


def group_request(
    config: Config, order: TaskOrder, ordinal: int, version: Callable[[], int], *, attempt: int = 0
) -> GroupRequest:
    """The group ``ordinal``: ``rollout.group_size`` episodes of the task at that position of ``order``.

    ``version`` is asked for the policy version at which an episode starts. Where a small set repeats a task within
    ``rollout.tasks_per_step`` positions, its sample numbers go on, so that no two episodes sample the same tokens; so
    they do where the group is rolled out again, for the time ``attempt``.
    """
    size, block = config.rollout.group_size, config.rollout.tasks_per_step
    task = order.at(ordinal)
    first = size * (order.repeats(ordinal, ordinal - ordinal % block) + attempt * block)
    newest = _newest(config, version())
    return GroupRequest(
        phase="train",
        ordinal=ordinal,
        task=task.index,
        data=task.data,
        samples=range(first, first + size),
        settings=lambda key: training_session(config, key, version(), newest),
    )


def _newest(config: Config, version: int) -> int:
    """The newest version of the weights while a group that starts at ``version`` rolls out."""
    return version + config.rollout.max_staleness if config.rollout.on_stale == "wait" else LARGEST_VERSION


def training_session(config: Config, key: EpisodeKey, version: int, newest: int | None = None) -> SessionSettings:
    """How the session of the training episode ``key`` samples, which is opened under weights of ``version``.

    Tokens may be of any version up to ``newest``, by default of ``version`` alone.
    """
    rollout = config.rollout
    return SessionSettings(
        training=True,
        model=config.model.name,
        temperature=rollout.temperature,
        max_tokens=rollout.max_tokens,
        override=rollout.override,
        versions=(version, version if newest is None else newest),
        seed_key=(config.seed, key.phase, key.group // rollout.tasks_per_step, key.task, key.sample),
    )
