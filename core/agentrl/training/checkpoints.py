"""A checkpoint: a Hugging Face model folder that also says which version of which run it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from agentrl.errors import ConfigError
from agentrl.learner.learner import Learner

__all__ = ["CheckpointInfo", "Conversing", "read_checkpoint", "save_checkpoint"]

_INFO = "checkpoint.json"
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Conversing:
    """What the prompts of a run were like, beside what the model's folder says."""

    source: str | None = None
    """The file of ``model.chat_template``."""
    template: str | None = None
    """Its text."""
    date: str | None = None
    """The date that every prompt held, as 2026-01-31; ``None`` where none holds one."""


_OWN = Conversing()


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself, beside its weights and the optimiser's state."""

    version: int
    """Optimiser steps that made the weights; sampling seeds derive from it."""
    cursor: int
    """How many tasks had been taken from the training set."""
    chat_template: str | None = None
    """The file whose chat template the run used, and the folder keeps; ``None`` where that is the model's own."""
    date: str | None = None
    """The date in the run's prompts, where its chat template writes one."""


def save_checkpoint(folder: Path, learner: Learner, *, cursor: int, conversing: Conversing = _OWN) -> None:
    """Fill ``folder`` with the learner's weights, its state, the place in the task order and how it was talked to.

    Raises ``RunError`` or ``OSError`` where it cannot be written.
    """
    learner.save(folder)
    learner.save_state(folder)
    if conversing.template is not None:
        (folder / _TEMPLATE).write_text(conversing.template, encoding="utf-8")
    info = CheckpointInfo(learner.version, cursor, conversing.source, conversing.date)
    (folder / _INFO).write_text(json.dumps(asdict(info)) + "\n", encoding="utf-8")


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
