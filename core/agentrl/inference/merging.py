"""Models in memory: a folder's, with its adapter merged where the folder holds one.

A merged weight is ``W + scale · B @ A`` in float32, computed by one function for learner and engines, so that both have
the same bits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from agentrl.errors import ConfigError, near_matches, one_line, shortened
from agentrl.inference.adapter_folder import ADAPTER_WEIGHTS, AdapterFolder, is_adapter, read_adapter
from agentrl.inference.model_folder import no_progress_bars
from agentrl.threads import threads

__all__ = ["adapter_tensors", "load_whole", "merged_weight"]

_PREFIX = "base_model.model."
_KINDS = (".lora_A.weight", ".lora_B.weight")


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, *, transposed: bool = False) -> Tensor:
    """Return ``weight + scale · b @ a``, shape of ``weight``, in float32 at least, without a gradient.

    ``a`` has shape (rank, inputs) and ``b`` (outputs, rank); ``transposed`` says that ``weight`` has its inputs first.
    The same tensors give the same bits, whatever else the process computes. Where ``b`` is all zero, as an adapter
    begins, the result is ``weight`` itself.
    """
    with torch.no_grad():
        if not bool(b.any()):
            return weight.detach()
        with threads(1):  # How a product is split over threads can show in its last bit.
            change = b.float() @ a.float() if b.dtype.itemsize < 4 else b @ a
        change *= scale
        return weight.detach() + (change.T if transposed else change)


def load_whole(folder: Path, dtype: torch.dtype, **options: object) -> PreTrainedModel:
    """Load the model in ``folder`` as ``dtype`` onto the CPU; an adapter is merged into its base.

    ``options`` are further arguments of ``from_pretrained``. Raises ``ConfigError`` for an adapter that does not fit
    its base or whose base is gone, and what transformers raises for a folder that holds no causal language model.
    """
    adapter = read_adapter(folder) if is_adapter(folder) else None
    with no_progress_bars():
        # An adapter is merged in float32, and the sum rounded once.
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder if adapter is None else adapter.base, dtype=dtype if adapter is None else torch.float32, **options
        )
    if adapter is not None:
        _merge(model, adapter)
        for parameter in model.parameters():  # Buffers, such as those of rotations, keep their type.
            parameter.data = parameter.data.to(dtype)
    return model


def _merge(model: PreTrainedModel, adapter: AdapterFolder) -> None:
    for path, (a, b) in adapter_tensors(adapter.folder).items():
        module = _layer(model, path, adapter)
        weight = module.get_parameter("weight")
        transposed = not isinstance(module, torch.nn.Linear)
        if tuple(weight.shape) != ((a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])):
            raise ConfigError(
                f"the adapter in {adapter.folder} was made for another model than {adapter.base}: {path} has the shape "
                f"{list(weight.shape)}, and the adapter's is {[b.shape[0], a.shape[1]]}",
                fix="name its base model in adapter_config.json",
            )
        with torch.no_grad():
            weight.copy_(merged_weight(weight, a, b, adapter.scale, transposed=transposed))


def _layer(model: PreTrainedModel, path: str, adapter: AdapterFolder) -> torch.nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        names = [name for name, _ in model.named_modules()]
        raise ConfigError(
            f"the adapter in {adapter.folder} was made for another model than {adapter.base}, which has no {path}",
            fix=near_matches(path, names),
        ) from error


def adapter_tensors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return ``A`` and ``B`` of each adapted layer, by the layer's name, on the CPU.

    Raises ``ConfigError`` for a file that cannot be read, and for one that holds anything else.
    """
    try:
        stored = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{folder / ADAPTER_WEIGHTS} cannot be read: {shortened(one_line(error))}",
            fix="copy the adapter's folder again, or name another checkpoint",
        ) from error
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in stored:
        path = name.removeprefix(_PREFIX).removesuffix(_KINDS[0])
        if name.endswith(_KINDS[0]) and (other := _PREFIX + path + _KINDS[1]) in stored:
            # Copies lie where torch allocates them, as the learner's own do: a kernel may choose by that.
            found[path] = stored[name].clone(), stored[other].clone()
    if 2 * len(found) != len(stored):
        raise ConfigError(
            f"{folder / ADAPTER_WEIGHTS} holds other tensors than pairs of lora_A and lora_B",
            fix="name a folder that agentrl or peft saved of a LoRA adapter",
        )
    return found
