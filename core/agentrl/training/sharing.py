"""Sharing: the engine computes with the memory of the learner's weights, where both can."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from agentrl.inference.contract import Backend
from agentrl.inference.sharing.contract import SharesWeights, SharingBackend
from agentrl.learner.contract import Trainable

__all__ = ["WeightSharing", "sharing"]


class WeightSharing:
    """Whether the engine computes with the learner's own memory, and for how long it has stood still for that."""

    def __init__(self) -> None:
        self.follows = False
        """Whether the weights that the engine computes with change during the learner's step."""
        self._seconds = 0.0

    @contextmanager
    def pausing(self, backend: SharingBackend) -> Iterator[None]:
        """A block in which ``backend`` stands still."""
        began = time.perf_counter()
        with backend.paused():
            yield
        self._seconds += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """The metric of how long the engine has stood still since the call before, where it shares weights."""
        seconds, self._seconds = self._seconds, 0.0
        return {"seconds/learner/paused": seconds} if self.follows else {}


@contextmanager
def sharing(learner: Trainable, backend: Backend) -> Iterator[WeightSharing]:
    """Let ``backend``, which is started and stopped in the block, compute with the weights of ``learner``.

    Where one of the two cannot, the engine keeps a copy, and so it does where its class takes updates in a way of its
    own and only inherits the sharing. Raises ``ConfigError`` where the config asks for more.
    """
    found = WeightSharing()
    if not isinstance(backend, SharingBackend) or _takes_updates_otherwise(backend):
        yield found
        return
    if not isinstance(learner, SharesWeights):
        backend.share(None)
        yield found
        return
    memory = learner.share("the inference engine", lambda: found.pausing(backend))
    adapts = memory.adapter is not None
    try:
        shares = backend.share(memory)
        if not shares:
            memory.give_back()
        found.follows = shares and not adapts
        yield found
    finally:
        memory.give_back()


def _takes_updates_otherwise(backend: SharingBackend) -> bool:
    """Whether the class has an ``update_weights`` of its own over that of the class whose ``share`` it inherits."""
    named = ({"share", "update_weights"} & vars(each).keys() for each in type(backend).__mro__)
    return next(filter(None, named), None) == {"update_weights"}
