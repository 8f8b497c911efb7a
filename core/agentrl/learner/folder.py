"""The folder of a model that is trained, read and written, and the optimiser's state beside it.

The files are written where they are asked for. Whoever needs them whole or not at all has them written into a folder
that gets its name afterwards, as ``agentrl.runs.folder`` does for checkpoints.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from agentrl.errors import ConfigError, RunError, cannot_write, one_line
from agentrl.inference.adapter_folder import ADAPTER_CONFIG, base_of
from agentrl.inference.merging import load_whole
from agentrl.inference.model_folder import no_progress_bars

if TYPE_CHECKING:
    from agentrl.learner.adapters import LoraAdapter

__all__ = [
    "check_unquantised",
    "copy_small_files",
    "has_room_in_float32",
    "load_model",
    "precision_on",
    "read_state",
    "save_adapter",
    "save_model",
    "stored_dtype",
    "write_dtype",
    "write_merged",
    "write_state",
]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
"""Endings of files that hold weights, which a saved folder has its own of."""

_CONFIGS = ("config.json", ADAPTER_CONFIG)

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

SPARE = 1 << 16
"""Bytes left on a disk that is as good as full."""


def check_unquantised(folder: Path) -> None:
    """Raise ``ConfigError`` where the model in ``folder``, or the base of its adapter, has quantised weights.

    Neither the weights can be trained then nor an adapter over them: the sampler would compute with them rounded in
    another way than the learner, and a checkpoint could not be merged. A folder without a readable config passes.
    """
    try:
        config = json.loads((base_of(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # whoever loads it says what is wrong
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not found:
        return
    named = found if isinstance(found, dict) else {}
    bits = next(
        (f" to {each} bits" for each in (4, 8) if named.get(f"load_in_{each}bit") or named.get("bits") == each), ""
    )
    how = f" ({named['quant_method']})" if named.get("quant_method") else ""
    raise ConfigError(
        f"the weights of model folder {folder} are quantised{bits}{how}, and such are not trained, with an adapter "
        "neither: sampler and learner would round them differently, and a checkpoint could not be merged",
        fix="name the model that it was made from, and where memory is short set training.lora, "
        "training.precision=bfloat16 or training.gradient_checkpointing=true",
        key="model.name",
    )


def load_model(folder: Path) -> PreTrainedModel:
    """Load the model in ``folder`` into the CPU's memory, in float32; an adapter is merged into its base.

    Raises ``ConfigError`` for a folder that holds no causal language model, for quantised weights, and for an adapter
    that does not fit its base.
    """
    check_unquantised(folder)
    try:
        model = load_whole(folder, torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model folder {folder} does not load as a causal language model: {one_line(error)}",
            fix="name a folder that `save_pretrained` wrote",
        ) from error
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the folder's own may not be savable
    return model


def has_room_in_float32(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether ``device`` holds the weights of ``model`` in float32 for a moment, as they are loaded."""
    if device.type != "cuda":
        return True
    free: int = torch.cuda.mem_get_info(device)[0]
    return 4 * model.num_parameters() < free


def precision_on(device: torch.device, precision: str) -> torch.dtype:
    """The type that ``training.precision`` means on ``device``, of the weights and of what is computed with them."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32


def save_model(
    model: PreTrainedModel,
    source: Path,
    folder: Path,
    dtype: torch.dtype | None = None,
    masters: Mapping[str, torch.Tensor] | None = None,
    *,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write ``model`` into ``folder``, with the tokenizer, template and other small files of ``source``.

    ``folder`` is made where it is missing. The weights are written as ``dtype``, by default as they are; those that
    ``masters`` has, by the names of ``named_parameters``, are rounded from there. With ``state`` they are the ones in
    there, by the names that a whole model has. Raises ``RunError`` where a file cannot be written; what has been
    written by then stays.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with no_progress_bars():
            if state is not None:
                model.save_pretrained(folder, state_dict=dict(state))
            elif dtype in (None, model.dtype):
                model.save_pretrained(folder)
            else:
                _write_cast(model, folder, dtype, masters or {})
        copy_small_files(source, folder)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


def save_adapter(
    adapter: LoraAdapter,
    base: Path,
    folder: Path,
    source: Path | None = None,
    masters: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write ``adapter`` of the model in ``base`` into ``folder``, in peft's format.

    What ``masters`` has, by the names of ``named_parameters``, is written as it is there. With ``source`` the folder
    also gets that one's tokenizer, template and other small files, so that it can be named as a model. It is made where
    it is missing. Raises as ``save_model`` does.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        adapter.save(folder, base, masters or {})
        if source is not None:
            copy_small_files(source, folder)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


def write_merged(adapter: Path, folder: Path) -> None:
    """Write the model in the folder ``adapter``, with its adapter merged, into ``folder``, in the dtype of its base.

    A folder of a whole model is written as such, too. Raises ``ConfigError`` as ``load_whole`` does, and ``RunError``
    where a file cannot be written.
    """
    model = load_whole(adapter, stored_dtype(adapter))
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the folder's own may not be savable
    save_model(model, adapter, folder)


def copy_small_files(source: Path, folder: Path) -> None:
    """Copy what is neither weights nor a config from ``source`` into ``folder``: tokenizer, template and the like."""
    for file in source.iterdir():
        if file.is_file() and file.name not in _CONFIGS and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, folder / file.name)


def _write_cast(model: PreTrainedModel, folder: Path, dtype: torch.dtype, masters: Mapping[str, torch.Tensor]) -> None:
    model.save_pretrained(folder, state_dict=_cast(model, dtype, masters))
    write_dtype(folder, dtype)


def write_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Have the config in ``folder`` say that the weights are of ``dtype``."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers writes what the model computes in, at the top and for each of its parts.
    for section in (config, *config.values()):
        if isinstance(section, dict) and "dtype" in section:
            section["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cast(model: PreTrainedModel, dtype: torch.dtype, masters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of ``model`` as ``dtype``; tensors that are one stay one, so that tied weights are written once."""
    exact = {weight.data_ptr(): masters[name] for name, weight in model.named_parameters() if name in masters}
    made: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            place = tensor.data_ptr()
            if place not in made:
                made[place] = exact.get(place, tensor).to(dtype)
            tensor = made[place]
        state[name] = tensor
    return state


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and numbers as ``path``. Raises ``RunError`` where it cannot be written."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        # torch's writer raises the latter on a full disk, without saying so
        full = isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < SPARE
        raise cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error) from error


def read_state(path: Path, *, in_place: bool = False) -> dict[str, Any]:
    """Read what ``write_state`` wrote, into the CPU's memory: a GPU may have no room for a second state, and offloaded
    ones have none there at all. With ``in_place`` tensors stay in the file, which is read where they are. Raises
    ``RunError`` where the file is missing or damaged."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=in_place))
    except (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path} cannot be read, or is damaged ({type(error).__name__})",
            fix=f"restore it from a copy, or delete {path.parent} to go on from the checkpoint before it",
        ) from error


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that the model in ``folder`` keeps its weights in.

    It is what the folder's config says, else the dtype of its first tensor; float32 for what is no plain float. Of an
    adapter it is that of its base. Raises what transformers raises for a folder without a config.
    """
    folder = base_of(folder)
    named = AutoConfig.from_pretrained(folder).get_text_config().dtype
    if isinstance(named, str):
        named = getattr(torch, named, None)
    if named is None:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    return _FLOATS.get(tensors.get_slice(name).get_dtype(), torch.float32)
    return named if named in _FLOATS.values() else torch.float32
