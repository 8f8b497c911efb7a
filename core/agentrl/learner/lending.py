"""The weights of one policy version while somebody has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.inference.contract import TensorDigest
from agentrl.inference.digests import tensor_digest
from agentrl.learner.contract import Targets
from agentrl.learner.folder import save_model
from agentrl.learner.policy import Policy

__all__ = ["LentWeights"]


class LentWeights:
    """The weights of one policy version while somebody has them: an ``agentrl.inference.contract.Weights``.

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

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of every parameter; one that is tied to others comes once, under its first name.

        The tensors are the learner's own memory: copy what is needed after the loan.
        """
        for name, parameter in self._model().named_parameters():
            self._model()  # they may have been given back since the last tensor
            yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """Write a model that ``AutoModelForCausalLM`` loads, tokenizer files included, into ``folder``.

        The folder is made where it is missing. Raises ``RunError`` where a file cannot be written; what has been
        written by then stays.
        """
        save_model(self._model(), self._source, folder)

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """Return the natural log-probabilities of ``ids[1:]`` at temperature 1, in the type of the weights."""
        self._model()
        path = np.asarray(ids, dtype=np.int64)
        if len(path) < 2:
            return ()
        count = len(path) - 1
        targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), path[1:], np.ones(count))
        logprobs: list[float] = self._policy.score_paths(targets, [path], len(path)).logprob.tolist()
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """Return the digests of the parameters that ``dtypes`` names, each as it is after ``tensor.to(dtype)``.

        ``dtypes`` has torch's names without the prefix. A parameter that is tied to others goes by any of its names,
        and is read once for each type; a name that the model does not have is left out.
        """
        found: dict[tuple[int, str], TensorDigest] = {}
        named: dict[str, TensorDigest] = {}
        for name, parameter in self._model().named_parameters(remove_duplicate=False):
            if name not in dtypes:
                continue
            self._model()
            key = id(parameter), dtypes[name]
            if key not in found:
                cast = parameter.detach().to(getattr(torch, dtypes[name]))
                found[key] = TensorDigest(dtypes[name], tuple(parameter.shape), tensor_digest(cast))
            named[name] = found[key]
        return named

    def _model(self) -> PreTrainedModel:
        if self._returned:
            raise RuntimeError(
                f"{self.borrower} used the weights of version {self.version} after giving them back: copy what is "
                "needed of them before (a backend has them until its update_weights returns)"
            )
        return self._policy.model
