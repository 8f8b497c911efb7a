"""Adapters of low rank (LoRA): which layers get one, and the adapter of a model under training.

peft injects the layers into the model, which stays the Hugging Face model that it was: each adapted projection computes
``W x + scale · B (A x)`` (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"). ``W`` is frozen, and
``A`` and ``B`` are all that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agentrl.config.training import LoraModel
from agentrl.errors import ConfigError, near_matches, one_line, shortened
from agentrl.inference.adapter_folder import ADAPTER_WEIGHTS, base_of, is_adapter, read_adapter
from agentrl.inference.merging import adapter_tensors, merged_weight

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

__all__ = ["AdapterPlan", "LoraAdapter", "plan_adapter"]

_NAME = "default"
"""peft's name of the one adapter."""
_ROUTERS = ("gate", "router")
"""The last part of the names of layers that choose experts, and are no projections of an MLP."""


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """How large an adapter would be."""

    rank: int
    targets: tuple[str, ...]
    """The last parts of the names of the adapted layers."""
    layers: int
    """How many layers are adapted."""
    trained: int
    """How many numbers the adapter has."""
    total: int
    """How many parameters the model has, without the adapter."""
    adapted: int
    """How many of those the adapter changes."""

    def __str__(self) -> str:
        share = self.trained / self.total
        return (
            f"{_count(self.trained)} parameters are trained, {share:.2%} of the model's {_count(self.total)}: an "
            f"adapter of rank {self.rank} on {self.layers} layers ({', '.join(self.targets)})"
        )


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 100_000 else f"{number:,}"


def plan_adapter(folder: Path, settings: LoraModel) -> AdapterPlan:
    """Return what ``settings`` make of the model in ``folder``, without loading its weights.

    Raises ``ConfigError`` for a rank or targets that do not fit it, a model that peft cannot adapt, and a folder of
    another adapter.
    """
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base_of(folder))
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        total = model.num_parameters()
        adapter = LoraAdapter(model, settings)
    if is_adapter(folder):
        adapter.load(folder)
    adapted = sum(layer.get_base_layer().get_parameter("weight").numel() for layer in adapter.layers.values())
    return AdapterPlan(settings.rank, adapter.targets, len(adapter.layers), adapter.size, total, adapted)


class LoraAdapter:
    """The adapter of ``model``, which gets its layers and is frozen beside them.

    It begins with ``B = 0``, so that the model is what it was. Raises ``ConfigError`` for a rank or targets that do not
    fit the model, and for a model that peft cannot adapt.
    """

    def __init__(self, model: PreTrainedModel, settings: LoraModel) -> None:
        self.rank = settings.rank
        self.scale = settings.scale
        self.targets = _targets(model, settings)
        """The last parts of the names of the adapted layers."""
        self.whole: Callable[[Tensor], Tensor] = Tensor.detach
        """From a weight to the whole of it, where the model is spread over ranks."""
        self._model = model
        self._config = _inject(model, settings, self.targets)

    @cached_property
    def layers(self) -> Mapping[str, LoraLayer]:
        """peft's layer in the place of each adapted one, by its name."""
        from peft.tuners.lora import LoraLayer

        return {name: module for name, module in self._model.named_modules() if isinstance(module, LoraLayer)}

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    def tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and tensor of each ``A`` and ``B``: ``….q_proj.lora_A.weight`` and the like."""
        for name, layer in self.layers.items():
            for kind, tensor in zip(("lora_A", "lora_B"), _pair(layer), strict=True):
                yield f"{name}.{kind}.weight", tensor

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each ``A`` and ``B`` by its name of ``named_parameters``."""
        for name, tensor in self.tensors():
            yield _own(name), tensor

    def plain(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter, LoraLayer | None]]:
        """Yield each parameter of the model under the name that it has without an adapter.

        With it comes the layer that adapts it, where one does.
        """
        layers = self.layers
        for name, parameter in self._model.named_parameters(remove_duplicate=remove_duplicate):
            path, _, own = name.rpartition(".")
            if ".lora_" in path:
                continue
            adapted = path.removesuffix(".base_layer")
            yield f"{adapted}.{own}", parameter, layers.get(adapted) if own == "weight" else None

    def merged(self, layer: LoraLayer) -> Tensor:
        """Return the weight of ``layer`` with its adapter added."""
        base, pair = layer.get_base_layer(), _pair(layer)
        weight, a, b = (self.whole(each) for each in (base.get_parameter("weight"), *pair))
        return merged_weight(weight, a, b, self.scale, transposed=isinstance(base, Conv1D))

    @contextmanager
    def merging(self, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
        """Within the block, adapted layers compute with their merged weights, each rounded to the type in ``dtypes``.

        The keys are names of ``plain``. One weight is merged at a time, so that no second model is held.
        """
        modules = [cast("nn.Module", layer) for layer in self.layers.values()]
        for name, module in zip(self.layers, modules, strict=True):
            module.forward = partial(self._merged_forward, self.layers[name], dtypes.get(f"{name}.weight"))
        try:
            yield
        finally:
            for module in modules:
                del module.forward  # which shows that of its class again

    def _merged_forward(self, layer: LoraLayer, dtype: torch.dtype | None, inputs: Tensor) -> Tensor:
        base, weight = layer.get_base_layer(), self.merged(layer)
        weight = weight if dtype is None else weight.to(dtype)
        weight = weight.T if isinstance(base, Conv1D) else weight
        exact = torch.promote_types(weight.dtype, inputs.dtype)
        bias = dict(base.named_parameters()).get("bias")
        made = nn.functional.linear(inputs.to(exact), weight.to(exact), None if bias is None else bias.to(exact))
        return made.to(inputs.dtype)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block, the model computes as if it had no adapter."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Within the block, the adapter drops the share of its inputs that the settings say."""
        drops = [layer.lora_dropout for layer in self.layers.values()]
        for each in drops:
            each.train(True)
        try:
            yield
        finally:
            for each in drops:
                each.train(False)

    def save(self, folder: Path, base: Path, masters: Mapping[str, Tensor]) -> None:
        """Write the adapter into ``folder`` in peft's format, as one of the model in ``base``.

        What ``masters`` has, by the names of ``named_parameters``, is written as it is there. Raises ``OSError`` or
        ``SafetensorError`` where a file cannot be written.
        """
        self._config.base_model_name_or_path = str(base)
        self._config.save_pretrained(str(folder))
        held = {name: masters.get(_own(name), tensor.detach()) for name, tensor in self.tensors()}
        tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in held.items()}
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Take up the adapter in ``folder``. Raises as ``read`` does."""
        saved = self.read(folder)
        with torch.no_grad():
            for name, tensor in self.tensors():
                tensor.copy_(saved[_own(name)])

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Return the adapter in ``folder``, by the names of ``named_parameters``, on the CPU.

        Raises ``ConfigError`` where that has other layers, rank or scale.
        """
        saved, scale = adapter_tensors(folder), read_adapter(folder).scale
        layers, found = self.layers, dict[str, Tensor]()
        if saved.keys() != layers.keys():
            odd = sorted(saved.keys() ^ layers.keys())
            raise ConfigError(
                f"the adapter in {folder} is on other layers than training.lora.targets adapts: {odd[0]} and "
                f"{len(odd) - 1} others",
                fix=f"leave training.lora.targets as it was, or make a whole model first: agentrl export {folder} OUT "
                "--merge",
            )
        for name, (a, b) in saved.items():
            own = _pair(layers[name])
            if own[0].shape != a.shape or own[1].shape != b.shape:
                if a.shape[0] == self.rank:
                    shapes = [f"{of.shape[0]} x {to.shape[1]}" for to, of in (own, (a, b))]
                    raise ConfigError(
                        f"the adapter in {folder} was made for another model than {base_of(folder)}: {name} is "
                        f"{shapes[0]}, and the adapter's is {shapes[1]}",
                        fix="name its base model in adapter_config.json",
                    )
                raise ConfigError(
                    f"the adapter in {folder} has rank {a.shape[0]}, and training.lora.rank is {self.rank}",
                    fix=f"set training.lora.rank={a.shape[0]}, or make a whole model first: agentrl export {folder} "
                    "OUT --merge",
                )
            if scale != self.scale:
                raise ConfigError(
                    f"the adapter in {folder} is scaled by {scale:g}, and training.lora makes that {self.scale:g}",
                    fix=f"set training.lora.alpha={scale * self.rank:g}",
                )
            found |= {_own(f"{name}.lora_A.weight"): a, _own(f"{name}.lora_B.weight"): b}
        return found


def _own(name: str) -> str:
    """The name of the model's parameter for one of ``LoraAdapter.tensors``."""
    return f"{name.removesuffix('weight')}{_NAME}.weight"


def _pair(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """Its ``A`` and ``B``."""
    return tuple(kind.get_parameter(f"{_NAME}.weight") for kind in (layer.lora_A, layer.lora_B))  # type: ignore[return-value]


def _inject(model: PreTrainedModel, settings: LoraModel, targets: tuple[str, ...]) -> LoraConfig:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank if settings.alpha is None else _whole(settings.alpha),  # type: ignore[arg-type]
        target_modules=list(targets),
        exclude_modules=_excluded(model, targets) or None,
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for _, module in _matching(model, targets)),
    )
    try:
        inject_adapter_in_model(config, model, _NAME)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"training.lora: peft cannot adapt {type(model).__name__}: {shortened(one_line(error))}",
            fix="set training.lora.targets to other layers, or training.lora=null to train all weights",
        ) from error
    return config


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _linear(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear projections in the model's layers, by name: not its head, and nothing that chooses experts."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D)
        and module is not head
        and any(part.isdecimal() for part in name.split("."))
        and name.rpartition(".")[2] not in _ROUTERS
    }


def _matching(model: PreTrainedModel, targets: tuple[str, ...] | list[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose names are, or end with, one of ``targets``, as peft finds them."""
    for name, module in model.named_modules():
        if any(name == target or name.endswith(f".{target}") for target in targets):
            yield name, module


def _excluded(model: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """The modules that have the name of a target and are no projection of a layer."""
    linear = _linear(model)
    return [name for name, _ in _matching(model, targets) if name not in linear]


def _targets(model: PreTrainedModel, settings: LoraModel) -> tuple[str, ...]:
    linear = _linear(model)
    if not linear:
        raise ConfigError(
            f"training.lora: {type(model).__name__} has no linear projection in its layers that peft could adapt",
            fix="set training.lora=null to train all weights",
        )
    last = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    targets = tuple(last) if settings.targets == "auto" else tuple(settings.targets)
    for target in () if settings.targets == "auto" else targets:
        found = dict(_matching(model, [target]))
        if not found:
            raise ConfigError(
                f"training.lora.targets: {target!r} is the name of no layer of {type(model).__name__}",
                fix=near_matches(target, last),
            )
        if not found.keys() & linear.keys():
            name, module = next(iter(found.items()))
            raise ConfigError(
                f"training.lora.targets: {target!r} is {name}, a {type(module).__name__}, and only linear projections "
                "of attention and MLP are adapted",
                fix=f"name some of them: {', '.join(last)}",
            )
    adapted = [(name, each.get_parameter("weight").shape) for name, each in _matching(model, targets) if name in linear]
    name, shape = min(adapted, key=lambda each: min(each[1]))
    if settings.rank > min(shape):
        raise ConfigError(
            f"training.lora.rank={settings.rank} is larger than {name}, which is {' x '.join(map(str, shape))}",
            fix=f"set training.lora.rank to at most {min(shape)}",
        )
    return targets
