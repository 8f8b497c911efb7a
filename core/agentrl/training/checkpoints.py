"""A checkpoint: a Hugging Face model folder that also holds what a run needs to go on from it."""

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
    """The chat template and the date of a run's prompts, where they differ from those of the model's folder."""

    source: str | None = None
    """The path of the file that ``model.chat_template`` names."""
    template: str | None = None
    """The text of that file."""
    date: str | None = None
    """The date in every prompt, as 2026-01-31; ``None`` where the template writes none."""


_OWN = Conversing()


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """The content of ``checkpoint.json``, beside the weights and the optimiser's state."""

    version: int
    """Policy version of the weights, in optimiser steps; sampling seeds derive from it."""
    cursor: int
    """How many tasks the run had taken from its task order."""
    chat_template: str | None = None
    """The file whose chat template the run used and the folder keeps; ``None`` where it is the model's own."""
    date: str | None = None
    """The date in the run's prompts, where its chat template writes one."""


def save_checkpoint(folder: Path, learner: Learner, *, cursor: int, conversing: Conversing = _OWN) -> None:
    """Write the learner's weights and state, ``cursor`` and ``conversing`` as plain files into ``folder``.

    ``cursor`` counts the tasks that were taken from the task order. The folder is one that
    ``RunFolder.new_checkpoint`` stages. Raises ``RunError`` or ``OSError`` where a file cannot be written.
    """
    learner.save(folder)
    learner.save_state(folder)
    if conversing.template is not None:
        (folder / _TEMPLATE).write_text(conversing.template, encoding="utf-8")
    info = CheckpointInfo(learner.version, cursor, conversing.source, conversing.date)
    (folder / _INFO).write_text(json.dumps(asdict(info)) + "\n", encoding="utf-8")


def read_checkpoint(folder: Path) -> CheckpointInfo:
    """The ``checkpoint.json`` of ``folder``; a model folder without one has version 0 and cursor 0.

    Raises ``ConfigError`` for a file that is not a checkpoint's.
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
