"""A checkpoint: a Hugging Face model folder that also says which version of which run it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.training.learner import Learner

__all__ = ["CheckpointInfo", "read_checkpoint", "save_checkpoint"]

_INFO = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself, beside its weights and the optimiser's state."""

    version: int
    """Optimiser steps that made the weights; sampling seeds derive from it."""
    cursor: int
    """How many tasks had been taken from the training set."""


def save_checkpoint(folder: Path, learner: Learner, *, cursor: int) -> None:
    """Fill ``folder`` with the learner's weights, its state and the place in the task order.

    Raises ``RunError`` or ``OSError`` where it cannot be written.
    """
    learner.save(folder)
    learner.save_state(folder)
    (folder / _INFO).write_text(json.dumps(asdict(CheckpointInfo(learner.version, cursor))) + "\n", encoding="utf-8")


def read_checkpoint(folder: Path) -> CheckpointInfo:
    """What ``folder`` says of itself; a model folder that no run saved is version 0.

    Raises ``ConfigError`` for a file that no run wrote.
    """
    path = folder / _INFO
    if not path.exists():
        return CheckpointInfo(version=0, cursor=0)
    try:
        return CheckpointInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not what a run wrote: {error}", fix="delete it to use the folder as a model"
        ) from error
