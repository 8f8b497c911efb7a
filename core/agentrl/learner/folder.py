"""Writing model folders, whole or not at all, and the state beside them; a full disk is told apart."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from agentrl.inference.model_folder import no_progress_bars
from agentrl.runs.filesystem import cannot_write, sync_tree

__all__ = ["save_model", "write_aside", "write_state"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
"""Endings of files that hold weights, which a saved folder has its own of."""

SPARE = 1 << 16
"""Bytes left on a disk that is as good as full."""


def save_model(model: PreTrainedModel, source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``model`` as ``folder``, with the tokenizer, template and other small files of ``source``.

    The weights are written as ``dtype``, by default as they are. A folder that is there already is replaced. Raises
    ``RunError`` where it cannot be written.
    """

    def write(aside: Path) -> None:
        with no_progress_bars():
            if dtype in (None, model.dtype):
                model.save_pretrained(aside)
            else:
                _write_cast(model, aside, dtype)
        for file in source.iterdir():
            if file.is_file() and file.name != "config.json" and not file.name.endswith(WEIGHTS):
                shutil.copyfile(file, aside / file.name)

    write_aside(folder, write)


def _write_cast(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    model.save_pretrained(folder, state_dict=_cast(model, dtype))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers writes what the model computes in, at the top and for each of its parts.
    for section in (config, *config.values()):
        if isinstance(section, dict) and "dtype" in section:
            section["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state of ``model`` as ``dtype``; tensors that are one stay one, so that tied weights are written once."""
    made: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor = made.setdefault(tensor.data_ptr(), tensor.to(dtype))
        state[name] = tensor
    return state


def write_aside(target: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a folder beside ``target`` and rename it to ``target`` once it is whole and durable."""
    aside, replaced = (target.with_name(f".{target.name}.{suffix}") for suffix in ("part", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write(aside)
        sync_tree(aside)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        aside.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise cannot_write(target, error) from error
    shutil.rmtree(replaced, ignore_errors=True)


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and numbers as ``path``. Raises ``RunError`` where it cannot be written."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        # torch's writer raises the latter on a full disk, without saying so
        full = isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < SPARE
        raise cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error) from error
