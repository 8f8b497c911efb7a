"""The contract of weights that are shared: an engine that computes with the memory in which the learner has them.

It is for an engine in the learner's process, on its device and in its type. Nothing is copied then: the weights change
in place, and the engine stands still for as long as they do. ``agentrl.inference.contract.Weights`` are lent for the
length of an update; what is shared stays with the engine until it has stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agentrl.inference.contract import Adapter

if TYPE_CHECKING:
    import torch

__all__ = ["Pause", "SharedWeights", "SharesWeights", "SharingBackend"]

Pause = Callable[[], AbstractContextManager[None]]
"""Returns a block in which the engine computes nothing, since the weights change. Entering it waits until the engine
stands still between two tokens; at its end the engine takes up ``SharedWeights.version``, drops what it has computed
with older numbers, and goes on. Where the block raises, the numbers may be neither old nor new: the engine stands still
until the next such block has ended well, or it is stopped. It may be entered in any thread but the engine's own."""


class SharedWeights(Protocol):
    """The learner's own memory of its weights, by the names of the Hugging Face model."""

    @property
    def version(self) -> int:
        """The policy version of the numbers that are in the memory now."""
        ...

    @property
    def adapter(self) -> Adapter | None:
        """The adapter, where one is trained over a frozen model: ``tensors`` are those of the model then, which never
        change, and the adapter's may be read whenever weights are lent."""
        ...

    @property
    def turns(self) -> bool:
        """Whether parameters may lie in memory column by column."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the name and the memory of every parameter, once where it is tied; to be read, and never written."""
        ...

    def place(self, name: str, memory: torch.Tensor) -> None:
        """Have the learner keep the parameter ``name`` in ``memory``, which has its numbers, type and shape.

        So an engine may lay parameters side by side, or column by column where they may lie so; without gaps in any
        case. Raises ``ValueError`` for memory that does not do.
        """
        ...

    def give_back(self) -> None:
        """End the sharing: the engine has stopped. Safe to call twice."""
        ...


@runtime_checkable
class SharesWeights(Protocol):
    """What a learner is as well whose weights an engine in its process can share."""

    def share(self, borrower: str, pause: Pause) -> SharedWeights:
        """Share the weights with ``borrower``, which ``pause`` holds still at every change of them."""
        ...


@runtime_checkable
class SharingBackend(Protocol):
    """What a backend is as well that can compute with shared weights.

    A class that inherits this and has an ``update_weights`` of its own is given copies, unless it has its own ``share``
    too: what it does with an update would never be called.
    """

    def share(self, weights: SharedWeights | None) -> bool:
        """Have the engine compute with ``weights`` once it is started; ``None`` are those of a learner elsewhere.

        Returns whether it will. Else it keeps a copy of its own; ``BackendContext.say`` is told why, unless the config
        says that it is not to share. Raises ``ConfigError`` where the config says that it is to, and it cannot. Call it
        before ``start``, which may still find that a copy has to do: it gives the weights back then.
        """
        ...

    def paused(self) -> AbstractContextManager[None]:
        """See ``Pause``. Where the engine is not running there is nothing to wait for. Raises ``BackendError`` where
        it does not stand still in time."""
        ...
