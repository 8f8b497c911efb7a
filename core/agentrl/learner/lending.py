"""The weights of one policy version while somebody has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentrl.inference.adapter_folder import base_of
from agentrl.inference.contract import TensorDigest
from agentrl.inference.digests import tensor_digest
from agentrl.inference.sending import call_with
from agentrl.learner.contract import Targets
from agentrl.learner.folder import save_adapter, save_model
from agentrl.learner.policy import Policy

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

    from agentrl.learner.adapters import LoraAdapter

__all__ = ["LentAdapter", "LentWeights"]


class LentWeights:
    """The weights of one policy version while somebody has them: an ``agentrl.inference.contract.Weights``.

    Where several ranks hold the model, each lends at once and calls the same methods in the same order; what they
    return is the same on all, and whole: a tensor is put together when it is asked for, and files are written by
    rank 0.

    A view, not a copy. Leaving its ``with`` block, or ``give_back``, ends it; after that everything but ``version``
    raises ``RuntimeError``.
    """

    def __init__(
        self,
        policy: Policy,
        version: int,
        source: Path,
        borrower: str,
        on_return: Callable[[LentWeights], None] = lambda lent: None,
    ) -> None:
        """``source`` is the folder whose tokenizer goes with them; ``on_return`` is called when they are back."""
        self.version = version
        """Number of optimiser steps that made the weights."""
        self.borrower = borrower
        """Who has them, in words."""
        self._policy = policy
        self._source = source
        self._on_return = on_return
        self._returned = False
        self._ranks = policy.ranks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def give_back(self) -> None:
        """End the loan. Safe to call twice."""
        if not self._returned:
            self._returned = True
            self._on_return(self)

    @property
    def adapter(self) -> LentAdapter | None:
        """The adapter, where one is trained; ``None`` where all weights are."""
        adapter = self._policy.adapter
        if adapter is None:
            return None
        return LentAdapter(adapter, self._model, base_of(self._source), self.logprobs, self._policy)

    def names(self) -> Sequence[str]:
        """Return the names of ``tensors``."""
        return [name for name, _, _ in self._parameters()]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of every parameter; one that is tied to others comes once, under its first name.

        The tensors are the learner's own memory, but for those that an adapter is merged into or that are spread over
        ranks, each of which is made when it is asked for: copy what is needed after the loan.
        """
        for name, parameter, layer in self._parameters():
            self._model()  # they may have been given back since the last tensor
            with self._ranks.guarding("put a tensor together"):
                tensor = self._value(parameter, layer)
            yield name, tensor

    def save(self, folder: Path) -> None:
        """Write a model that ``AutoModelForCausalLM`` loads, tokenizer files included, into ``folder``.

        The folder is made where it is missing. Raises ``RunError`` where a file cannot be written; what has been
        written by then stays.
        """
        model, adapter = self._model(), self._policy.adapter
        if self._policy.shards is not None:
            from agentrl.learner.model_writer import write_spread

            with self._ranks.guarding("save"):
                write_spread(model, self.tensors(), self._source, folder, self._ranks, self._policy.shards.dtype)
            return
        state = None if adapter is None else dict(self.tensors())
        save_model(model, self._source, folder, state=state)

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """Return the natural log-probabilities of ``ids[1:]`` at temperature 1, in the type of the weights."""
        self._model()
        path = np.asarray(ids, dtype=np.int64)
        if len(path) < 2:
            return ()
        count = len(path) - 1
        targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), path[1:], np.ones(count))
        with self._ranks.guarding("score"):
            logprobs: list[float] = self._policy.score_paths(targets, [path], len(path)).logprob.tolist()
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """Return the digests of the parameters that ``dtypes`` names, each as it is after ``tensor.to(dtype)``.

        ``dtypes`` has torch's names without the prefix. A parameter that is tied to others goes by any of its names,
        and is read once for each type; a name that the model does not have is left out.
        """
        found: dict[tuple[int, str], TensorDigest] = {}
        named: dict[str, TensorDigest] = {}
        for name, parameter, layer in self._parameters(remove_duplicate=False):
            if name not in dtypes:
                continue
            self._model()
            key = id(parameter), dtypes[name]
            if key not in found:
                with self._ranks.guarding("put a tensor together"):
                    found[key] = _digest(self._value(parameter, layer), dtypes[name])
            named[name] = found[key]
        return named

    def send(self, target: str, /, **arguments: Any) -> Any:
        """Call the function ``package.module:function`` with these weights and ``arguments``; see the contract."""
        self._model()
        return call_with(self, target, arguments)

    def _parameters(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter, LoraLayer | None]]:
        """The parameters by the names that they have without an adapter, each with the layer that adapts it."""
        model, adapter = self._model(), self._policy.adapter
        if adapter is not None:
            yield from adapter.plain(remove_duplicate=remove_duplicate)
            return
        for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate):
            yield name, parameter, None

    def _value(self, parameter: nn.Parameter, layer: LoraLayer | None) -> Tensor:
        adapter = self._policy.adapter
        return self._policy.whole(parameter) if layer is None or adapter is None else adapter.merged(layer)

    def _model(self) -> PreTrainedModel:
        if self._returned:
            raise RuntimeError(
                f"{self.borrower} used the weights of version {self.version} after giving them back: copy what is "
                "needed of them before (a backend has them until its update_weights returns)"
            )
        return self._policy.model


class LentAdapter:
    """The adapter of weights that somebody has: an ``agentrl.inference.contract.Adapter``."""

    def __init__(
        self,
        adapter: LoraAdapter,
        check: Callable[[], object],
        base: Path,
        logprobs: Callable[[Sequence[int]], Sequence[float]],
        policy: Policy,
    ) -> None:
        """``check`` raises once the weights are back; ``base`` is the folder of the model that is adapted.

        ``logprobs`` is that of the weights, and ``policy`` has them.
        """
        self.rank = adapter.rank
        self.scale = adapter.scale
        self.targets = adapter.targets
        self._adapter = adapter
        self._check = check
        self._base = base
        self._logprobs = logprobs
        self._policy = policy

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of every ``A`` and ``B``, the learner's own memory where it is not spread."""
        for name, tensor in self._adapter.tensors():
            self._check()
            yield name, self._policy.whole(tensor)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of every parameter that the adapter changes, with the change in it."""
        for name, _, layer in self._adapter.plain():
            if layer is not None:
                self._check()
                yield name, self._adapter.merged(layer)

    def merged_logprobs(self, ids: Sequence[int], dtypes: Mapping[str, str]) -> Sequence[float]:
        """Return the log-probabilities under the merged weights, rounded to ``dtypes``; see the contract."""
        with self._adapter.merging({name: getattr(torch, dtype) for name, dtype in dtypes.items()}):
            return self._logprobs(ids)

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """Return digests of the parameters of the base and the adapter, apart; see the contract."""
        found = {}
        for name, parameter, _ in self._adapter.plain(remove_duplicate=False):
            if name in dtypes:
                self._check()
                found[name] = _digest(self._policy.whole(parameter), dtypes[name])
        for name, tensor in self._adapter.tensors():
            if name in dtypes:
                self._check()
                factor = self.scale if name.endswith(".lora_B.weight") else 1.0
                found[name] = _digest(self._policy.whole(tensor), dtypes[name], factor)
        return found

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's format. Raises ``RunError`` where a file cannot be written."""
        self._check()
        with self._policy.ranks.guarding("save"):
            whole = {name: self._policy.whole(tensor) for name, tensor in self._adapter.parameters()}
            self._policy.ranks.first(lambda: save_adapter(self._adapter, self._base, folder, masters=whole))


def _digest(tensor: Tensor, dtype: str, factor: float = 1.0) -> TensorDigest:
    cast = tensor.to(getattr(torch, dtype))
    return TensorDigest(dtype, tuple(tensor.shape), tensor_digest(cast if factor == 1.0 else cast * factor))
