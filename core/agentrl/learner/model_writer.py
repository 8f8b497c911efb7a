"""Writing a model that no process holds whole: tensor by tensor, into files of a bounded size."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from agentrl.errors import RunError, cannot_write
from agentrl.learner.folder import copy_small_files, write_dtype
from agentrl.learner.ranks import Ranks

__all__ = ["ModelWriter", "write_spread"]

FILE_BYTES = 2 << 30
"""Bytes of tensors after which a file ends, and about what the writer holds at a time."""
_INDEX = "model.safetensors.index.json"


def write_spread(
    model: PreTrainedModel,
    tensors: Iterable[tuple[str, Tensor]],
    source: Path,
    folder: Path,
    ranks: Ranks,
    dtype: torch.dtype,
) -> None:
    """Write ``model`` from its ``tensors`` into ``folder``, as ``save_model`` does, where it is spread over ``ranks``.

    All ranks call it and go through ``tensors``, which come in the order of ``named_parameters`` and as ``dtype``;
    rank 0 writes. Raises ``RunError``, on every rank, where a file cannot be written.
    """
    failed: RunError | None = None
    writer = ModelWriter(model, folder, dtype) if ranks.rank == 0 else None
    for name, tensor in tensors:
        if writer is not None and failed is None:
            failed = _tried(folder, lambda: writer.add(name, tensor))  # noqa: B023 - called at once
    if writer is not None and failed is None:
        failed = _tried(folder, lambda: writer.finish(source))
    ranks.agree(failed)


def _tried(folder: Path, write: Callable[[], None]) -> RunError | None:
    """What kept ``write`` from writing into ``folder``; the others wait for this rank, which must not leave them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write()
    except (OSError, SafetensorError) as error:
        return cannot_write(folder, error)
    return None


class ModelWriter:
    """Writes the folder of ``model`` from tensors that come one by one, by the names of ``named_parameters``.

    Of what comes it holds a layer, and then a file, until that is written.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        self._model = model
        self._folder = folder
        self._dtype = dtype
        self._layer = ""
        self._coming: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        self._files: list[list[str]] = []
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take the next tensor. Raises ``OSError`` or ``SafetensorError`` where a file cannot be written."""
        layer = ".".join(takewhile(lambda part: not part.isdecimal(), name.split(".")))
        number = next((part for part in name.split(".") if part.isdecimal()), "")
        if f"{layer}.{number}" != self._layer:
            self._take()
            self._layer = f"{layer}.{number}"
        self._coming[name] = tensor.to("cpu", self._dtype)

    def finish(self, source: Path) -> None:
        """Write the rest, the configs, and the tokenizer and other small files of the folder ``source``."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, buffer in self._model.state_dict().items():
            if name not in parameters:
                self.add(name, buffer)
        self._take()
        self._write()
        self._name_files()
        config = copy.deepcopy(self._model.config)
        config.architectures = [type(self._model).__name__]
        config.save_pretrained(self._folder)
        if self._model.can_generate() and self._model.generation_config is not None:
            self._model.generation_config.save_pretrained(self._folder)
        write_dtype(self._folder, self._dtype)
        copy_small_files(source, self._folder)

    def _take(self) -> None:
        """Take over a layer, by the names and in the shapes of the hub, for which all of its tensors are needed."""
        ignored = self._model._keys_to_ignore_on_save or ()
        for name, tensor in revert_weight_conversion(self._model, self._coming).items():
            if name in ignored:
                continue
            self._held[name] = tensor.contiguous()
            self._bytes += tensor.nbytes
            if self._bytes >= FILE_BYTES:
                self._write()
        self._coming = {}

    def _write(self) -> None:
        if self._held:
            save_file(self._held, self._part(len(self._files)), metadata={"format": "pt"})
            self._files.append(list(self._held))
        self._held, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"model-{number + 1:05d}.part"

    def _name_files(self) -> None:
        """Give the files their names, which tell how many there are, and write the index where it is several."""
        count = len(self._files)
        whole = "model.safetensors"
        names = (
            [whole] if count == 1 else [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
        )
        for old in self._folder.glob("model*.safetensors"):
            old.unlink()
        for number, name in enumerate(names):
            os.replace(self._part(number), self._folder / name)
        (self._folder / _INDEX).unlink(missing_ok=True)
        if count > 1:
            size = sum((self._folder / name).stat().st_size for name in names)
            weight_map = {tensor: name for name, held in zip(names, self._files, strict=True) for tensor in held}
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (self._folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
