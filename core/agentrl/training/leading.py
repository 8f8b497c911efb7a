"""Sending the weights of several ranks: the first one calls the function, and leads the others through what it asks.

Putting a tensor together takes all ranks. Which tensors the function asks for, and when, only the first rank knows, so
it tells the others before each one; they follow until they are told that the function has returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.inference.contract import Adapter, TensorDigest, Weights
from agentrl.inference.sending import call_with
from agentrl.learner.ranks import Ranks

if TYPE_CHECKING:
    import torch

__all__ = ["send_weights"]


def send_weights(weights: Weights, ranks: Ranks, target: str, arguments: Mapping[str, Any]) -> Any:
    """Call the function ``target`` with ``weights`` and ``arguments`` on the first of ``ranks``, and return its result.

    All ranks call this at once; on the others it returns ``None``. Raises what the function raises, on the first rank.
    """
    if not ranks.together:
        return call_with(weights, target, arguments)
    if ranks.rank:
        _follow(weights, ranks)
        return None
    try:
        return call_with(_Led(weights, ranks), target, arguments)
    finally:
        ranks.gather(None)


def _follow(weights: Weights, ranks: Ranks) -> None:
    passing: dict[tuple[str, int], Iterator[Any]] = {}
    while (asked := ranks.gather(None)[0]) is not None:
        owner, method, arguments, number = asked
        held: Any = weights.adapter if owner == "adapter" else weights
        if number is None:
            getattr(held, method)(*(Path(each) if method == "save" else each for each in arguments))
            continue
        key = owner, number
        if key not in passing:
            passing[key] = iter(getattr(held, method)())
        next(passing[key], None)


class _Leading:
    """What the first rank asks of all: itself and those that follow."""

    owner = ""

    def __init__(self, held: Any, ranks: Ranks) -> None:
        self.held = held
        self.ranks = ranks
        self._count = 0

    def asked(self, method: str, *arguments: Any) -> Any:
        told = [str(each) if isinstance(each, Path) else each for each in arguments]
        self.ranks.gather([self.owner, method, told, None])
        return getattr(self.held, method)(*arguments)

    def passed(self, method: str) -> Iterator[tuple[str, torch.Tensor]]:
        self._count += 1
        number, passing = self._count, iter(getattr(self.held, method)())
        while True:
            self.ranks.gather([self.owner, method, [], number])
            try:
                named = next(passing)
            except StopIteration:
                return
            yield named


class _LedAdapter(_Leading):
    """An ``Adapter`` of weights that all ranks hold together."""

    owner = "adapter"

    def __init__(self, held: Adapter, ranks: Ranks) -> None:
        super().__init__(held, ranks)
        self.rank, self.scale, self.targets = held.rank, held.scale, held.targets

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.passed("tensors")

    def merged(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.passed("merged")

    def merged_logprobs(self, ids: Sequence[int], dtypes: Mapping[str, str]) -> Sequence[float]:
        logprobs: Sequence[float] = self.asked("merged_logprobs", [int(each) for each in ids], dict(dtypes))
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        digests: Mapping[str, TensorDigest] = self.asked("digests", dict(dtypes))
        return digests

    def save(self, folder: Path) -> None:
        self.asked("save", folder)


class _Led(_Leading):
    """``Weights`` that all ranks hold together."""

    def __init__(self, held: Weights, ranks: Ranks) -> None:
        super().__init__(held, ranks)
        self.version = held.version
        self.adapter = None if held.adapter is None else _LedAdapter(held.adapter, ranks)

    def names(self) -> Sequence[str]:
        names: Sequence[str] = self.held.names()
        return names

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.passed("tensors")

    def save(self, folder: Path) -> None:
        self.asked("save", folder)

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        logprobs: Sequence[float] = self.asked("logprobs", [int(each) for each in ids])
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        digests: Mapping[str, TensorDigest] = self.asked("digests", dict(dtypes))
        return digests

    def send(self, target: str, /, **arguments: Any) -> Any:
        """Call another function from within one: it is on the first rank already."""
        return call_with(self, target, arguments)
