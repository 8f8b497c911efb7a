"""What a worker of a vLLM server holds: its tensors as the Hugging Face model has them, read from its own memory.

vLLM joins projections that read the same input, adds rows to the vocabulary, splits tensors over processes, and on a
CPU packs matrices for a kernel and forgets the plain ones. Here they are split, cut and put together again. A packed
matrix is multiplied by the unit matrix, which returns each of its numbers as it is: what is added to it is zeros. Only
the sign of a zero is lost, and taken from elsewhere where there are zeros.

This module imports nothing of agentrl: a copy of it runs in the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Held", "Unreadable", "held_adapter", "held_tensors", "stored_tensors", "with_signs_of"]

_UNIT_ROWS = 512
"""Rows of the unit matrix at a time."""


class Unreadable(Exception):
    """The model holds its tensors in a form that is not understood here; the message is a part of a sentence."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in a worker's memory."""

    name: str
    """Its name in the Hugging Face model."""
    tensor: torch.Tensor
    tied_to: str | None = None
    """The name of the tensor that it is a copy of, where the model has one tensor for both."""
    signs: torch.Tensor | None = None
    """Where the tensor was packed, and a plain one is there too: the plain one, which has the signs of zeros."""
    is_packed: bool = False


def held_tensors(model: Any, shapes: Mapping[str, Sequence[int]] | None) -> Iterator[Held]:
    """Yields the tensors of ``model``, each once. ``shapes`` are those of the Hugging Face model, where known.

    All workers that share the model have to do this at the same time. Raises ``Unreadable`` at the first tensor that
    has no counterpart in ``shapes``.
    """
    names = None if shapes is None else _names_in(model, shapes)
    packed = getattr(model, "packed_modules_mapping", None) or {}
    seen: dict[int, str] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        path = place.removesuffix(".base_layer")  # Layers that take adapters hold the model's own in themselves.
        for own, parameter in module.named_parameters(recurse=False):
            is_packed = own == "weight" and _computes_with_packed(path, module)
            if id(parameter) in seen and not is_packed:
                continue
            tensor = _unpacked(module) if is_packed else parameter.data
            for name, part in _parts(path, own, module, tensor, packed):
                found = _named(name, part, names, shapes, is_copy=id(parameter) in seen)
                tied_to = seen.setdefault(id(parameter), found)
                signs = parameter.data[: part.shape[0]] if is_packed and parameter.numel() else None
                yield Held(found, part, None if tied_to == found else tied_to, signs, is_packed)


def held_adapter(
    manager: Any, number: int, model: Any, shapes: Mapping[str, Sequence[int]] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields name and tensor of each ``A`` and ``B`` of the adapter ``number``, which ``model`` computes with.

    ``B`` has the adapter's scale in it. ``manager`` is vLLM's of adapters, and ``shapes`` are as of ``held_tensors``.
    """
    names = None if shapes is None else _names_in(model, shapes)
    packed = getattr(model, "packed_modules_mapping", None) or {}
    loaded = manager.get_adapter(number)
    if loaded is None:
        raise Unreadable(f"adapter {number} is not there any more")
    if number not in manager.lora_index_to_id:
        manager.activate_adapter(number)
    slot = manager.lora_index_to_id.index(number)
    for path, module in manager.modules.items():
        if (given := loaded.loras.get(path)) is None:
            continue
        if getattr(module, "tp_size", 1) > 1:
            raise Unreadable("its adapters are split over processes")
        parent, dot, last = path.rpartition(".")
        stacks = list(zip(module.lora_a_stacked, module.lora_b_stacked, strict=True))
        parts = [last] if len(stacks) == 1 else packed.get(last, ())
        ranks = [None if each is None else each.shape[0] for each in _listed(given.lora_a)]
        if not len(parts) == len(stacks) == len(ranks):
            raise Unreadable(f"it holds the adapter of {path} in a form that is not known")
        for part, (a, b), rank in zip(parts, stacks, ranks, strict=True):
            if rank is not None:
                weight = f"{parent}{dot}{part}.weight"
                layer = (weight if names is None else names.get(weight, weight)).removesuffix(".weight")
                yield f"{layer}.lora_A.weight", a[slot, 0, :rank]
                yield f"{layer}.lora_B.weight", b[slot, 0, :, :rank]


def _listed(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def stored_tensors(folder: Path) -> Mapping[str, Callable[[], torch.Tensor]]:
    """Returns, by name, a function without arguments that reads the tensor from ``folder``'s safetensors files."""
    from safetensors import safe_open

    found: dict[str, Callable[[], torch.Tensor]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        opened: Any = safe_open(file, "pt")
        found |= {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118
    return found


def with_signs_of(tensor: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """Returns ``tensor`` with its zeros replaced by those of ``plain``, which differ in their sign alone."""
    import torch

    plain = plain.to(tensor)
    return torch.where((tensor == 0) & (plain == 0), plain, tensor)


def _names_in(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """From vLLM's names of tensors that are not joined to those of the Hugging Face model."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return {name: name for name in shapes}
    if hasattr(mapper, "orig_to_new_stacked"):  # It would name what they are joined to.
        mapper = replace(mapper, orig_to_new_stacked={})
    mapped = ((mapper.map_name(name), name) for name in shapes)
    return {ours: name for ours, name in mapped if ours is not None}


def _named(
    name: str, part: Any, names: Mapping[str, str] | None, shapes: Mapping[str, Sequence[int]] | None, *, is_copy: bool
) -> str:
    """The Hugging Face model's name of a tensor that is called ``name`` here."""
    if names is None or shapes is None:
        return name
    if (found := names.get(name)) is None:
        if is_copy:  # Of a tensor that the folder has under its other name alone.
            return name
        raise Unreadable(f"it holds {name}, which the model folder does not have")
    if list(part.shape) != list(shapes[found]):
        raise Unreadable(f"it holds {name} as {list(part.shape)}, and the model folder as {list(shapes[found])}")
    return found


def _computes_with_packed(path: str, module: Any) -> bool:
    """Whether a module multiplies with a packed copy of its weight. An embedding has one as well, and looks rows up."""
    return hasattr(module, "cpu_linear") and (not _is_vocabulary(module) or path.rpartition(".")[2] == "lm_head")


def _is_vocabulary(module: Any) -> bool:
    """Whether a module is an embedding or a head, with rows that vLLM has added."""
    return hasattr(module, "org_vocab_size")


def _unpacked(layer: Any) -> Any:
    """The weight of a layer ``[outputs, inputs]``, from what its kernel makes of the unit matrix."""
    import torch

    inputs = next(
        size
        for name in ("input_size_per_partition", "input_size", "embedding_dim")
        if (size := getattr(layer, name, None)) is not None
    )
    columns = []
    with torch.inference_mode():
        for start in range(0, inputs, _UNIT_ROWS):
            rows = min(_UNIT_ROWS, inputs - start)
            unit = torch.zeros(rows, inputs, dtype=layer.weight.dtype)
            unit[torch.arange(rows), torch.arange(start, start + rows)] = 1
            columns.append(layer.quant_method.apply(layer, unit, None))
        return torch.cat(columns).t().contiguous()


def _parts(path: str, own: str, module: Any, tensor: Any, packed: Mapping[str, Sequence[str]]) -> Iterator[Any]:
    """The tensors that a module's parameter ``own`` was joined from, whole and under their names."""
    parent, dot, last = path.rpartition(".")
    sizes, joined = getattr(module, "output_partition_sizes", None), packed.get(last, ())
    if sizes is not None and len(joined) == len(sizes) > 1:
        for position, (one, part) in enumerate(zip(joined, tensor.split(list(sizes)), strict=True)):
            copies = getattr(module, "num_kv_head_replicas", 1) if position else 1
            yield f"{parent}{dot}{one}.{own}", _gathered(part, 0, sum(sizes) != module.output_size, copies)
    elif _is_vocabulary(module):
        yield f"{path}.{own}", _gathered(tensor, 0, module.tp_size > 1)[: module.org_vocab_size]
    elif sizes is not None:
        whole = _gathered(tensor, 0, sum(sizes) != module.output_size)
        inputs = getattr(module, "input_size_per_partition", None)
        yield f"{path}.{own}", _gathered(whole, 1, own == "weight" and inputs not in (None, module.input_size))
    else:
        yield f"{path}.{own}" if path else own, tensor


def _gathered(part: Any, dimension: int, is_split: bool, copies: int = 1) -> Any:
    """A tensor of which each worker has a part; where there are fewer parts than workers, several have the same."""
    if not is_split:
        return part
    from vllm.distributed import tensor_model_parallel_all_gather

    whole = tensor_model_parallel_all_gather(part.contiguous(), dimension)
    if copies == 1:
        return whole
    return whole.view(-1, part.shape[0], *part.shape[1:])[::copies].flatten(0, 1)
