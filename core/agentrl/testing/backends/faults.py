"""Faults of weight updates, to wrap any backend in: what a run has to stop for, and with which words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.inference.contract import (
    Adapter,
    Backend,
    Capabilities,
    Chunk,
    GenerationRequest,
    HeldWeights,
    TensorDigest,
    Weights,
)
from agentrl.inference.sending import call_with
from agentrl.testing.backends.reference import load_reference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tensors = dict[str, torch.Tensor]

__all__ = ["UPDATE_FAULTS", "FaultyBackend", "UpdateFault"]


@dataclass(frozen=True, slots=True)
class UpdateFault:
    """One way in which an update goes wrong, and how a run's error names it."""

    told: str
    """A regular expression that the error matches where the engine tells what it holds."""
    scored: str | None = None
    """The same where it cannot tell; ``None`` for a fault of what it tells."""
    version: int = 0
    """What is added to the version of the weights that the backend is given."""
    tensors: Callable[[Tensors, Tensors], Tensors] | None = None
    """From the old tensors and the new ones to those that the backend is given."""
    held: Callable[[HeldWeights], HeldWeights] | None = None
    """Changes what the backend tells of its weights."""
    is_old_adapter: bool = False
    """Whether the backend is given the adapter before the newest, as the newest; only weights that have one show it."""
    is_stale: bool = False
    """Whether a prompt that was computed before the update is completed under the old weights."""


class FaultyBackend:
    """``backend`` with a fault in its updates.

    ``model`` is what it holds: the folder that it was built for, or a model of the same weights. Where ``tells`` is
    false, it gives no digests of them.
    """

    def __init__(
        self, backend: Backend, fault: UpdateFault, model: Path | PreTrainedModel, *, tells: bool = True
    ) -> None:
        import copy

        self._backend = backend
        self._fault = fault
        self._tells = tells
        self._model: PreTrainedModel = load_reference(model).model if isinstance(model, Path) else copy.deepcopy(model)
        """The newest weights."""
        self._older: PreTrainedModel | None = None
        """Those before."""
        self._seen: set[tuple[int, ...]] = set()
        self._kept: set[tuple[int, ...]] = set()
        """The beginnings of prompts that were computed before the last update."""
        self._tensors = self._copied()
        """Those that the backend was given last, with the fault in them."""
        self._adapter: Tensors = {}
        """That of the newest weights."""

    async def start(self) -> Capabilities:
        """See ``Backend``."""
        return await self._backend.start()

    async def stop(self) -> None:
        """See ``Backend``."""
        await self._backend.stop()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """See ``Backend``."""
        beginning = tuple(request.prompt_ids[:16])
        old = self._older if self._fault.is_stale and beginning in self._kept else None
        self._seen.add(beginning)
        ids = list(request.prompt_ids)
        async with aclosing(self._backend.generate(request)) as stream:
            async for chunk in stream:
                ids += chunk.ids
                yield chunk if old is None else replace(chunk, logprobs=_scores(old, ids)[-len(chunk.ids) :])

    async def update_weights(self, weights: Weights) -> None:
        """See ``Backend``; this is where the fault comes in."""
        import copy

        import torch

        adapter, before = weights.adapter, self._tensors
        self._older, self._kept = copy.deepcopy(self._model), set(self._seen)
        with torch.no_grad():
            for name, tensor in weights.tensors():
                self._model.get_parameter(name).copy_(tensor)
        tensors = self._copied()
        if self._fault.tensors is not None:
            tensors = self._fault.tensors(self._tensors, tensors)
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if adapter is not None:
            old = self._adapter
            self.remember(weights)
            old = old or _unchanging(self._adapter)
            if self._fault.is_old_adapter:
                given = _Altered(weights, before, weights.version, _OldAdapter(adapter, old, before))
                await self._backend.update_weights(given)
                return
        await self._backend.update_weights(_Altered(weights, self._tensors, weights.version + self._fault.version))

    def remember(self, weights: Weights) -> None:
        """Take ``weights`` for those that the backend has been given last, before there was a fault."""
        if weights.adapter is not None:
            self._adapter = {name: tensor.detach().clone() for name, tensor in weights.adapter.tensors()}

    async def held_weights(self) -> HeldWeights:
        """See ``Backend``."""
        held = await self._backend.held_weights()
        if not self._tells:
            return HeldWeights(held.version, None, "it is told to keep them to itself")
        return held if self._fault.held is None or self._older is None else self._fault.held(held)

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        """See ``Backend``."""
        return await self._backend.score(ids)

    def _copied(self) -> Tensors:
        return {name: parameter.detach().clone() for name, parameter in self._model.named_parameters()}


class _Altered:
    """Weights with other tensors, or another version, than they have."""

    def __init__(self, weights: Weights, tensors: Tensors, version: int, adapter: Adapter | None = None) -> None:
        self.version = version
        self.adapter = adapter
        self._weights = weights
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._tensors.items()

    def save(self, folder: Path) -> None:
        """Writes one file of weights, under its usual name."""
        from safetensors.torch import save_file

        self._weights.save(folder)
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        return self._weights.logprobs(ids)

    def send(self, target: str, /, **arguments: Any) -> Any:
        return call_with(self, target, arguments)

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        return self._weights.digests(dtypes)


class _OldAdapter:
    """An adapter with the numbers of the one before it."""

    def __init__(self, adapter: Adapter, tensors: Tensors, model: Tensors) -> None:
        """``tensors`` are those of the one before, and ``model`` is the whole model with it."""
        self.rank, self.scale, self.targets = adapter.rank, adapter.scale, adapter.targets
        self._adapter = adapter
        self._tensors = tensors
        self._model = model

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._tensors.items()

    def merged(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, _ in self._adapter.merged():
            yield name, self._model[name]

    def merged_logprobs(self, ids: Sequence[int], dtypes: Mapping[str, str]) -> Sequence[float]:
        return self._adapter.merged_logprobs(ids, dtypes)

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        return self._adapter.digests(dtypes)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self._adapter.save(folder)
        tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in self._tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _unchanging(adapter: Tensors) -> Tensors:
    """An adapter that changes nothing, as every one begins."""
    return {name: tensor * 0 if name.endswith("lora_B.weight") else tensor for name, tensor in adapter.items()}


def _scores(model: PreTrainedModel, ids: Sequence[int]) -> tuple[float, ...]:
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0, :-1]
        chosen = torch.tensor(ids[1:])[:, None]
        return tuple(logits.float().log_softmax(-1).gather(1, chosen)[:, 0].tolist())


def _matrix(tensors: Tensors) -> str:
    """The first square matrix of a layer, else the first matrix."""
    matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2 and ".layers." in name]
    square = (name for name in matrices if tensors[name].shape[0] == tensors[name].shape[1])
    return next(square, matrices[0])


def _one_old(old: Tensors, new: Tensors) -> Tensors:
    name = _matrix(new)
    return {**new, name: old[name]}


def _one_transposed(old: Tensors, new: Tensors) -> Tensors:
    name = _matrix(new)
    return {**new, name: new[name].T.reshape(new[name].shape)}


def _one_half_written(old: Tensors, new: Tensors) -> Tensors:
    name = _matrix(new)
    return {**new, name: _halves(new[name], old[name])}


def _all_half_written(old: Tensors, new: Tensors) -> Tensors:
    return {name: _halves(new[name], old[name]) for name in new}


def _halves(first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Every other number of each."""
    import torch

    flat = torch.stack([first.flatten()[::2], rest.flatten()[1::2]], dim=1)
    return flat.view(first.shape)


def _without_one(held: HeldWeights) -> HeldWeights:
    assert held.tensors is not None
    missing = next(name for name in held.tensors if ".layers." in name)
    return replace(held, tensors={name: each for name, each in held.tensors.items() if name != missing})


def _rounded(held: HeldWeights) -> HeldWeights:
    """As if one tensor had been cast to eight bits."""
    assert held.tensors is not None
    name = next(iter(held.tensors))
    return replace(held, tensors={**held.tensors, name: replace(held.tensors[name], dtype="float8_e4m3fn")})


UPDATE_FAULTS: Mapping[str, UpdateFault] = {
    "wrong version": UpdateFault(
        r"serves version \d+, and was given version \d+ \(wrong version\)",
        r"serves version \d+, and was given version \d+ \(wrong version\)",
        version=-1,
    ),
    "missing tensor": UpdateFault(r"does not hold \S+\.layers\.\S+ \(missing\)", held=_without_one),
    "wrong type": UpdateFault(r"holds \S+ in float8_e4m3fn, and held it in \S+ before \(wrong type\)", held=_rounded),
    "old tensor": UpdateFault(r"still holds \S+ of version \d+ \(old\)", r"\(numeric\)", tensors=_one_old),
    "transposed tensor": UpdateFault(
        r"holds \S+ with other numbers than the learner's", r"\(numeric\)", tensors=_one_transposed
    ),
    "half-written tensor": UpdateFault(
        r"holds \S+ with other numbers than the learner's \(changed or written in part\)",
        r"\(numeric\)",
        tensors=_one_half_written,
    ),
    "an update that does nothing": UpdateFault(
        r"still holds \S+, \S+, \S+ and \d+ others of version \d+ \(old\)",
        r"\(numeric\): it computes with the weights of version \d+",
        tensors=lambda old, new: old,
    ),
    "half of the numbers": UpdateFault(
        r"and \d+ others with other numbers than the learner's \(changed or written in part\)",
        r"\(numeric\): a part of the new weights did not arrive",
        tensors=_all_half_written,
    ),
    "an old adapter under the right name": UpdateFault(
        r"holds \S+ with other numbers than the learner's|still holds \S+.* of version \d+ \(old\)",
        r"\(numeric\): it computes with the weights of version \d+",
        is_old_adapter=True,
    ),
    "stale cache": UpdateFault(
        r"\(stale cache\): it goes on with KV of older weights",
        r"\(stale cache\): it goes on with KV of older weights",
        is_stale=True,
    ),
}
"""By name: what a backend's first update may do wrong."""
