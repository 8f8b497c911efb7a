"""The tasks that a run takes where nobody has named any."""

from __future__ import annotations

import json

from agentrl.config.models import TasksSection
from agentrl.plugins.entries import normalised
from agentrl.plugins.versions import CORE
from agentrl.training.parts import EpisodeParts

__all__ = ["default_tasks"]

_SHOWN = 80


def default_tasks(parts: EpisodeParts) -> str | None:
    """In words, which tasks an agent is trained on that were not made for it; ``None`` where somebody chose them.

    The bundled agents are made for the default tasks.
    """
    config = parts.config
    if config.tasks.train != TasksSection().train or _is_bundled(parts):
        return None
    example = json.dumps(parts.train_tasks[0], ensure_ascii=False)
    return (
        f"tasks.train is the default: {config.agent.name} is trained on {config.tasks.train.name}, {example:.{_SHOWN}} "
        "and the like (set tasks.train to a file of tasks, or to one of `agentrl list-tasks`)"
    )


def _is_bundled(parts: EpisodeParts) -> bool:
    found = [entry for entry in parts.plugins.entries("agents") if entry.is_called(parts.config.agent.name)]
    return any(normalised(entry.distribution.name) == CORE for entry in found)
