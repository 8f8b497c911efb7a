"""A checkpoint: a folder of a model, or of an adapter, that also holds what a run needs to go on from it."""

from __future__ import annotations

import errno
import json
import struct
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from agentrl.errors import ConfigError, RunError
from agentrl.inference.adapter_folder import ADAPTER_CONFIG, is_adapter
from agentrl.learner.contract import Trainable
from agentrl.learner.learner import PARTS, STATE
from agentrl.runs.reader import Run

__all__ = ["CheckpointInfo", "Conversing", "is_whole", "read_checkpoint", "save_checkpoint", "superseded"]

_INFO = "checkpoint.json"
_INDEX = "model.safetensors.index.json"
_DAMAGED = (
    *(ValueError, TypeError, KeyError, AttributeError, EOFError, NotImplementedError, RuntimeError, OverflowError),
    *(struct.error, zlib.error, zipfile.BadZipFile, SafetensorError),
)
"""What readers of JSON, of a zip archive and of weights raise for a damaged file."""
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
    """The position in the task order before which every group was trained, left out or dropped. Which ones were taken
    after it, the episode store knows."""
    chat_template: str | None = None
    """The file whose chat template the run used and the folder keeps; ``None`` where it is the model's own."""
    date: str | None = None
    """The date in the run's prompts, where its chat template writes one."""
    seconds: float = 0.0
    """Wall-clock time that the run had taken."""


def save_checkpoint(
    folder: Path, learner: Trainable, *, cursor: int, conversing: Conversing = _OWN, seconds: float = 0.0
) -> None:
    """Write the learner's weights and state and the content of ``checkpoint.json`` as plain files into ``folder``.

    ``cursor``, ``conversing`` and ``seconds`` are as in ``CheckpointInfo``. The folder is one that
    ``RunFolder.new_checkpoint`` stages. Raises ``RunError`` or ``OSError`` where a file cannot be written.
    """
    learner.save(folder)
    learner.save_state(folder)
    if conversing.template is not None:
        (folder / _TEMPLATE).write_text(conversing.template, encoding="utf-8")
    info = CheckpointInfo(learner.version, cursor, conversing.source, conversing.date, round(seconds, 3))
    (folder / _INFO).write_text(json.dumps(asdict(info)) + "\n", encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Whether a run can go on from the checkpoint in ``folder``: its files are there, and none is damaged.

    Of the weights only the header and the size are looked at, since they have no checksum; the state, which is a file
    or of several ranks a folder, is read whole.
    Raises ``RunError`` where a file cannot be read, which does not say that it is damaged.
    """
    try:
        config = ADAPTER_CONFIG if is_adapter(folder) else "config.json"
        return _is_object(folder / config) and _is_object(folder / _INFO) and _has_state(folder) and _loads(folder)
    except (FileNotFoundError, *_DAMAGED):
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:  # A place in the file that it names cannot be one.
            return False
        raise RunError(f"cannot read the checkpoint {folder}: {error.strerror or error}") from error


def _is_object(path: Path) -> bool:
    return isinstance(json.loads(path.read_bytes()), dict)


def _has_state(folder: Path) -> bool:
    if (folder / PARTS).is_dir():
        from agentrl.learner.parts import are_whole  # Only where several ranks have saved.

        return are_whole(folder / PARTS)
    with zipfile.ZipFile(folder / STATE) as state:
        return state.testzip() is None


def _loads(folder: Path) -> bool:
    """Whether all files of weights are there, and each is as long as its header says."""
    index = folder / _INDEX
    names = {path.name for path in folder.glob("*.safetensors")}
    if index.exists():
        names |= set(json.loads(index.read_bytes())["weight_map"].values())
    for name in names:
        with safe_open(folder / name, framework="pt"):
            pass
    return bool(names)


def superseded(run: Run, keep: int, spared: Collection[Path | None]) -> list[Path]:
    """The checkpoints of a run that are not kept: all but the newest ``keep``, the best and ``spared``."""
    best = run.best_checkpoint()
    stay = {None if best is None else best.path, *spared}
    return [saved.path for saved in run.checkpoints()[:-keep] if saved.path not in stay]


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
