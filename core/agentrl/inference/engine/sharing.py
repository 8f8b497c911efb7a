"""The engine's model over the memory of a learner's weights.

The model is made as its config says, without memory of its own for its parameters, and gets the learner's. Where
the engine's network lays parameters side by side, the learner is asked to keep them there as well. Parameters that an
adapter changes are the exception: their sum with it is the engine's own, and made anew at every update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agentrl.errors import BackendError
from agentrl.inference.contract import Adapter, Weights
from agentrl.inference.merging import merged_weight
from agentrl.inference.sharing.contract import SharedWeights

__all__ = ["SharedModel", "elsewhere", "is_same"]


def elsewhere(weights: SharedWeights, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why an engine on ``device`` that computes in ``dtype`` cannot share ``weights``; ``None`` where it can.

    It is a part of a sentence.
    """
    for _, tensor in weights.tensors():
        if not is_same(tensor.device, device):
            return f"the learner is on {tensor.device} and the engine on {device}"
        if tensor.dtype != dtype:
            types = (str(each).removeprefix("torch.") for each in (tensor.dtype, dtype))
            return "the learner computes in {} and the engine in {}".format(*types)
    return None


def is_same(one: torch.device, other: torch.device) -> bool:
    """Whether two names are of one device; without a number, CUDA means the first."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


class SharedModel:
    """The model in ``folder``, whose parameters are the memory of ``weights``.

    Raises ``BackendError`` where the folder's model has other parameters than the learner's, or keeps numbers of its
    own beside them.
    """

    def __init__(self, folder: Path, weights: SharedWeights, device: torch.device, dtype: torch.dtype) -> None:
        self.weights = weights
        self._bases: dict[str, Tensor] = {}
        """Of each parameter that the adapter changes, the frozen one."""
        # What a learner computes gradients with must not be made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self.model = _without_memory(folder, dtype)
            self._fill(dict(weights.tensors()), _adapted(weights.adapter))
            nn.Module.to(self.model, device).train(False)
            if weights.adapter is not None:
                self.merge(weights.adapter)

    def settle(self) -> None:
        """Have the learner keep its parameters where they are now in this model."""
        for name, tensor in self._shared().items():
            if not _is_memory_of(tensor, self._of_learner[name]):
                self.weights.place(name, tensor)
                self._of_learner[name] = tensor

    def merge(self, adapter: Adapter) -> int:
        """Add ``adapter`` to the weights that it changes. Returns the bytes of the adapter, which is all that was
        read but for the frozen model. Raises ``BackendError`` where it is on other layers."""
        pairs = _adapted(adapter)
        if pairs.keys() != self._bases.keys():
            odd = sorted(pairs.keys() ^ self._bases.keys())
            raise BackendError(
                f"the adapter is on other layers than when the engine started: {', '.join(odd[:3])}",
                fix="train and sample the same model",
            )
        parameters = dict(self.model.named_parameters())
        for name, (a, b) in pairs.items():
            module = self.model.get_submodule(name.removesuffix(".weight"))
            turned = not isinstance(module, nn.Linear)
            parameters[name].copy_(merged_weight(self._bases[name], a, b, adapter.scale, transposed=turned))
        return sum(tensor.nbytes for pair in pairs.values() for tensor in pair)

    def check(self, weights: Weights) -> None:
        """Raise ``BackendError`` where ``weights`` are not those that this model computes with."""
        lent = dict(weights.tensors())
        moved = [name for name, own in self._shared().items() if name not in lent or not _is_memory_of(own, lent[name])]
        if moved:
            raise BackendError(
                f"the engine computes with the learner's own memory, and {', '.join(moved[:3])} "
                f"{'is' if len(moved) == 1 else 'are'} elsewhere by now, or of another learner",
                fix="set inference.backend.share_weights=false",
            )

    def _shared(self) -> Mapping[str, Tensor]:
        """The parameters whose memory is the learner's, by the learner's names."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return {name: parameters[name].detach() for name in self._of_learner}

    def _fill(self, memory: dict[str, Tensor], adapted: Mapping[str, object]) -> None:
        model, filled = self.model, dict[int, nn.Parameter]()
        unlike = [*_unlike(model, memory)]
        if unlike:
            raise BackendError(
                f"the engine cannot share the learner's weights: {unlike[0]}",
                fix="set inference.backend.share_weights=false",
            )
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in memory:
                base = memory[name]
                own = torch.empty_like(base) if name in adapted else base
                filled[id(parameter)] = nn.Parameter(own, requires_grad=False)
        for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, filled[id(parameter)])
        self._bases = {name: tensor for name, tensor in memory.items() if name in adapted}
        self._of_learner = {name: tensor for name, tensor in memory.items() if name not in adapted}


def _adapted(adapter: Adapter | None) -> dict[str, tuple[Tensor, Tensor]]:
    """``A`` and ``B`` by the name of the weight that they change."""
    if adapter is None:
        return {}
    tensors = dict(adapter.tensors())
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {f"{name}.weight": (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in layers}


def _unlike(model: PreTrainedModel, memory: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps ``model`` from being made of ``memory``, one sentence each."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    covered = {id(parameters[name]) for name in memory if name in parameters}
    for name in memory:
        if name not in parameters:
            yield f"its model has no parameter {name}"
        elif parameters[name].shape != memory[name].shape:
            yield f"{name} is {list(memory[name].shape)}, and in its model {list(parameters[name].shape)}"
    for name, parameter in parameters.items():
        if id(parameter) not in covered:
            yield f"the learner has no parameter {name}"
    for name in model.state_dict():
        if name not in parameters:
            yield f"its model stores {name} beside its parameters"
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            yield f"its model computes {name} in a way that needs its weights"


def _is_memory_of(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.device == other.device


class _EmptyOnMeta(TorchFunctionMode):
    """Gives tensors that are made without numbers no memory; what has numbers from the start, as buffers have, is made
    as always."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _without_memory(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in ``folder`` with parameters that have no memory."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with _EmptyOnMeta():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model
