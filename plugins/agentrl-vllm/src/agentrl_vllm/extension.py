"""The extension of a server's workers: check a folder of new weights, load them, and tell what the worker holds.

It is mixed into vLLM's worker class (``--worker-extension-cls``), in an interpreter that need not have agentrl, and
called by ``/collective_rpc``, which carries strings. Nothing raises: with several workers an answer that is missing
would leave the others' for the next call. So each returns a dict with the ``fault`` that it met, or ``None``.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from agentrl_vllm_cuda import gpu_of
    from agentrl_vllm_digests import tensor_digest
    from agentrl_vllm_memory import Held, Unreadable, held_adapter, held_tensors, stored_tensors, with_signs_of
    from agentrl_vllm_patches import report_unrestricted_logprobs
    from agentrl_vllm_stream import Stream
except ImportError:  # The plugin is installed beside the server, not copied to it, and agentrl with it.
    from agentrl import tensor_digest
    from agentrl_vllm.cuda import gpu_of
    from agentrl_vllm.memory import Held, Unreadable, held_adapter, held_tensors, stored_tensors, with_signs_of
    from agentrl_vllm.patches import report_unrestricted_logprobs
    from agentrl_vllm.stream import Stream

__all__ = ["WorkerExtension"]

Shapes = dict[str, list[int]]
"""The shape of each tensor in a model folder, by name."""

_FLOATS = ("F64", "F32", "BF16", "F16")
_INDEX = "model.safetensors.index.json"
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size"),
)
_LAST_WORD_S = 1.0
"""Seconds that a broken worker has for sending its answer before it ends."""

report_unrestricted_logprobs()


class WorkerExtension:
    """Methods that are mixed into a vLLM worker. Each returns a dict with the ``fault`` that it met, or ``None``."""

    model_config: Any
    vllm_config: Any
    model_runner: Any
    device: Any
    agentrl_shapes: Shapes | None = None
    """The shapes of the model that the server was started on, or of the first weights that it loaded."""
    agentrl_minus: Mapping[str, Any] | None = None
    """Of the tensors that were received last, by name, where they have zeros with a minus, of those that have any.
    ``None`` where the weights are those of a folder."""

    def agentrl_describe(self) -> dict[str, Any]:
        """Returns what the worker has loaded and how it computes: the fields of ``control.Description``."""
        return _answer(self._agentrl_describe)

    def agentrl_check(self, folder: str) -> dict[str, Any]:
        """Check that the weights in ``folder`` are whole and fit the model, which is not touched."""
        return _answer(lambda: self._agentrl_check(Path(folder)))

    def agentrl_load(self, folder: str) -> dict[str, Any]:
        """Replace the weights by those in ``folder``, in place. The engine must be paused.

        Where that fails the worker ends, because it may hold a part of the old weights and a part of the new.
        """
        answer = _answer(lambda: self._agentrl_load(Path(folder)))
        if answer["fault"] is not None:
            threading.Timer(_LAST_WORD_S, os._exit, [1]).start()
        return answer

    def agentrl_fits(self, names: str) -> dict[str, Any]:
        """Check that tensors of these names, as a list in JSON, are those of the model, which is not touched."""
        return _answer(lambda: self._agentrl_fits(json.loads(names)))

    def agentrl_receive(self, address: str, port: str, token: str, server: str) -> dict[str, Any]:
        """Replace the weights by those that come from a sender, in place. The engine must be paused.

        The arguments are those of ``Stream.opened``. Where that fails before anything has changed, the answer has
        ``untouched``; later the worker ends, as at ``agentrl_load``.
        """
        try:
            stream = Stream.opened(address, int(port), token, server, self.device, gpu_of(self.device))
        except Exception as error:
            return {"fault": f"{type(error).__name__}: {error}", "untouched": True}
        answer = _answer(lambda: self._agentrl_receive(stream))
        if answer["fault"] is not None:
            threading.Timer(_LAST_WORD_S, os._exit, [1]).start()
        return answer

    def agentrl_adapters(self) -> dict[str, Any]:
        """Returns the ``numbers`` of the adapters that the worker has, from those that it can compute with."""
        return _answer(lambda: {"numbers": sorted(self.model_runner.lora_manager.list_adapters())})

    def agentrl_digests(self, adapter: str = "") -> dict[str, Any]:
        """Returns the type, the shape and the digest of each tensor that the worker holds, by its name: ``tensors``.

        With ``adapter``, the number of one, they are those of the base model and of that adapter.
        ``absent`` are the names in the model folder that it does not hold. Where it cannot tell, there is the
        ``inability`` in the place of both, as a part of a sentence.
        """
        return _answer(lambda: self._agentrl_read(lambda: self._agentrl_digests(adapter)))

    def agentrl_compare(self, folder: str) -> dict[str, Any]:
        """Compare each tensor that the worker holds with the one in ``folder``.

        Returns the names of those that are not the same: ``unlike``. ``absent`` and ``inability`` are those of
        ``agentrl_digests``.
        """
        return _answer(lambda: self._agentrl_read(lambda: self._agentrl_compare(Path(folder))))

    def _agentrl_read(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if (kind := self.model_config.quantization) is not None:
            return {"inability": f"its weights are quantised ({kind})"}
        try:
            return read()
        except Unreadable as error:
            return {"inability": str(error)}

    def _agentrl_held(self) -> Iterator[Held]:
        self._agentrl_know_shapes()
        yield from held_tensors(self.model_runner.get_model(), self.agentrl_shapes)

    def _agentrl_digests(self, adapter: str) -> dict[str, Any]:
        stored: Mapping[str, Callable[[], Any]] | None = None
        tensors: dict[str, Any] = {}
        for held in self._agentrl_held():
            tensor, signs = held.tensor, held.signs
            if held.is_packed and bool((tensor == 0).any()):
                if signs is None and self.agentrl_minus is not None:
                    signs = _minus_zeros(tensor, self.agentrl_minus.get(held.name))
                elif signs is None:
                    stored = stored_tensors(Path(self.model_config.model)) if stored is None else stored
                    signs = stored[held.name]() if held.name in stored else None
                tensor = tensor if signs is None else with_signs_of(tensor, signs)
            tensor = self._agentrl_as_served(tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            tensors[held.name] = [dtype, list(tensor.shape), tensor_digest(tensor)]
        if adapter:
            manager, model = self.model_runner.lora_manager._adapter_manager, self.model_runner.get_model()
            for name, tensor in held_adapter(manager, int(adapter), model, self.agentrl_shapes):
                dtype = str(tensor.dtype).removeprefix("torch.")
                tensors[name] = [dtype, list(tensor.shape), tensor_digest(tensor)]
        return {"tensors": tensors, "absent": self._agentrl_absent(tensors)}

    def _agentrl_compare(self, folder: Path) -> dict[str, Any]:
        stored, unlike, names = stored_tensors(folder), [], set()
        for held in self._agentrl_held():
            names.add(held.name)
            read = stored.get(held.name) or stored.get(held.tied_to or "")
            if read is None:
                raise Unreadable(f"it holds {held.name}, which {folder} does not have")
            tensor = self._agentrl_as_served(held.tensor)
            expected = read().to(tensor)
            if expected.shape != tensor.shape or not bool((expected == tensor).all()):
                unlike.append(held.name)
        return {"unlike": unlike, "absent": self._agentrl_absent(names)}

    def _agentrl_as_served(self, tensor: Any) -> Any:
        """``tensor`` in the model's type, where a kernel wants it, unchanged, in one of more bits."""
        served = self.model_config.dtype
        is_wider = tensor.dtype != served and tensor.is_floating_point()
        return tensor.to(served) if is_wider and bool((tensor.to(served).to(tensor.dtype) == tensor).all()) else tensor

    def _agentrl_absent(self, held: Iterable[str]) -> list[str]:
        known = () if self.agentrl_shapes is None else self.agentrl_shapes
        return sorted(name for name in set(known) - set(held) if not _is_derived(name, _is_tied(self.model_config)))

    def _agentrl_know_shapes(self) -> None:
        if self.agentrl_shapes is None:
            started_on = Path(self.model_config.model)  # Which a reload changes.
            self.agentrl_shapes = _read_shapes(started_on) if started_on.is_dir() else None

    def _agentrl_describe(self) -> dict[str, Any]:
        config, scheduler = self.model_config, self.vllm_config.scheduler_config
        return {
            "folder": str(config.model),
            "dtype": str(config.dtype).removeprefix("torch."),
            "tied": _is_tied(config),
            "vocabulary": config.get_vocab_size(),
            "context": config.max_model_len,
            "sequences": scheduler.max_num_seqs,
            "chunks": bool(scheduler.enable_chunked_prefill),
            "device": self.vllm_config.device_config.device_type,
            "logprobs_mode": str(config.logprobs_mode),
            "max_logprobs": config.max_logprobs,
            "text": not config.skip_tokenizer_init,
        }

    def _agentrl_check(self, folder: Path) -> None:
        self._agentrl_know_shapes()
        new = _read_shapes(folder)
        if self.agentrl_shapes is None:
            _compare_sizes(folder, self.model_config.hf_text_config)
        else:
            _compare(new, self.agentrl_shapes, tied=_is_tied(self.model_config))

    def _agentrl_load(self, folder: Path) -> None:
        self._agentrl_check(folder)
        self.model_runner.reload_weights(weights_path=str(folder))
        _process_shared(self.model_runner.get_model())
        self.agentrl_minus = None
        if self.agentrl_shapes is None:
            self.agentrl_shapes = _read_shapes(folder)

    def _agentrl_fits(self, names: Sequence[str]) -> None:
        self._agentrl_know_shapes()
        if self.agentrl_shapes is not None:
            _compare_names(names, self.agentrl_shapes, tied=_is_tied(self.model_config))

    def _agentrl_receive(self, stream: Stream) -> None:
        self._agentrl_know_shapes()
        shapes: Shapes = {}
        minus: dict[str, Any] = {}

        def tensors() -> Iterator[tuple[str, Any]]:
            for name, tensor in stream.tensors(self.agentrl_shapes):
                shapes[name] = list(tensor.shape)
                negative = (tensor == 0) & tensor.signbit()
                if bool(negative.any()):
                    minus[name] = negative
                yield name, tensor

        self.model_runner.reload_weights(weights_iterator=tensors())
        if self.agentrl_shapes is not None:
            _compare_names(list(shapes), self.agentrl_shapes, tied=_is_tied(self.model_config))
        _process_shared(self.model_runner.get_model())
        self.agentrl_minus = minus
        if self.agentrl_shapes is None:
            self.agentrl_shapes = shapes


class _Fault(Exception):
    """A folder of weights is broken or does not fit; the message says how."""


def _answer(do: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    try:
        return {"fault": None, **(do() or {})}
    except Exception as error:
        text = str(error) if isinstance(error, _Fault) else f"{type(error).__name__}: {error}"
        return {"fault": " ".join(text.split()) or type(error).__name__}


def _read_shapes(folder: Path) -> Shapes:
    """The shapes of all tensors in a folder's safetensors files. Raises ``_Fault`` for files that are not whole."""
    if not folder.is_dir():
        raise _Fault(f"{folder} is no folder that this server can see")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _Fault(f"{folder} holds no safetensors file")
    shapes = {name: shape for file in files for name, shape in _read_header(file)}
    if (index := folder / _INDEX).exists():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if missing := sorted(listed.keys() - shapes.keys()):
            raise _Fault(f"{folder} lacks {_some(missing)}, which {_INDEX} lists")
    return shapes


def _read_header(file: Path) -> Iterator[tuple[str, list[int]]]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > size - 8:
            raise _Fault(f"{file} is cut short, or no safetensors file")
        header: dict[str, Any] = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != needed:
        raise _Fault(f"{file} has {size} bytes and should have {needed}")
    for name, entry in header.items():
        if entry["dtype"] not in _FLOATS:
            raise _Fault(f"{name} is of type {entry['dtype']}, not a floating-point number")
        yield name, entry["shape"]


def _minus_zeros(tensor: Any, negative: Any | None) -> Any | None:
    """Zeros that have a minus where ``negative`` says so, and which are in the shape of ``tensor``."""
    import torch

    if negative is None:
        return None
    zeros = torch.zeros_like(tensor)
    return torch.where(negative.to(tensor.device), -zeros, zeros)


def _compare(new: Shapes, old: Shapes, *, tied: bool) -> None:
    _compare_names(list(new), old, tied=tied)
    for name in sorted(name for name in new if not _is_derived(name, tied)):
        if new[name] != old[name]:
            raise _Fault(f"{name} is {new[name]} and should be {old[name]}")


def _compare_names(new: Sequence[str], old: Shapes, *, tied: bool) -> None:
    names, known = (set(filter(lambda name: not _is_derived(name, tied), each)) for each in (new, old))
    if missing := sorted(known - names):
        raise _Fault(f"the new weights lack {_some(missing)}")
    if unknown := sorted(names - known):
        raise _Fault(f"the model has no {_some(unknown)}")


def _compare_sizes(folder: Path, config: Any) -> None:
    """Compare the configuration in ``folder`` with the model's, for a model whose tensors are in no folder."""
    new = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    new = new.get("text_config", new)
    for name in _SIZES:
        if None not in (size := new.get(name), own := getattr(config, name, None)) and size != own:
            raise _Fault(f"{name} of the new weights is {size} and should be {own}")


def _is_derived(name: str, tied: bool) -> bool:
    """Whether a tensor follows from others, so that a folder may hold it or not."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name.endswith("lm_head.weight"))


def _is_tied(model_config: Any) -> bool:
    return bool(getattr(model_config.hf_text_config, "tie_word_embeddings", False))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _process_shared(model: Any) -> None:
    """Have layers that share a weight process it again, such as a head that is tied to the embedding.

    vLLM loads a shared weight into one of them; on a CPU each has its own copy, packed for its kernel.
    """
    users: dict[int, list[Any]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    for modules in users.values():
        for module in modules if len(modules) > 1 else ():
            if (method := getattr(module, "quant_method", None)) is not None:
                method.process_weights_after_loading(module)
