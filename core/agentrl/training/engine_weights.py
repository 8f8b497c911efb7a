"""The engine's weights: it is given each version that the learner makes, and proves that it has it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from agentrl.costs.contract import UNMETERED, Meter
from agentrl.errors import BackendError
from agentrl.inference.contract import Backend, Weights
from agentrl.learner.contract import Trainable
from agentrl.rollout.contract import Group
from agentrl.training.deadlines import within
from agentrl.training.proof import Recorded, UpdateProof

__all__ = ["EngineWeights", "Lender", "NoEngine"]

Result = TypeVar("Result")


class EngineWeights:
    """Keeps ``backend`` at the weights of ``learner``. Every wait ends after ``timeout`` seconds.

    All methods raise ``BackendError`` where the engine does not do what is asked, or not in time.
    """

    def __init__(
        self,
        learner: Trainable,
        backend: Backend,
        timeout: float,
        warn: Callable[[str], None],
        meter: Meter = UNMETERED,
    ) -> None:
        """``warn`` takes warnings, one line of text each, and ``meter`` is told what proofs have the engine do."""
        self._learner = learner
        self._backend = backend
        self._timeout = timeout
        self._proof = UpdateProof(warn, lambda usage: meter.spend("proof", "policy", "", usage))
        self._recorded: Recorded | None = None

    async def serve(self) -> dict[str, float]:
        """Lend the engine the learner's weights, and return once it samples from them, with the update's metrics."""
        came = await self._lent(
            "the inference engine", self._backend.update_weights, "the inference engine to take new weights"
        )
        return {} if came is None else {"weights/bytes": float(came)}

    async def record(self, groups: Sequence[Group]) -> None:
        """Keep a call of ``groups`` for the proof of the update to come.

        Of the first it is measured how far engine and learner are apart, which have the same weights now.
        """
        recorded = Recorded.of(episode.tree for group in groups for episode in group.episodes) or self._recorded
        self._recorded = recorded
        if recorded is not None and not self._proof.prepared:
            await self._lent(
                "the proof of the engine's weights",
                lambda weights: self._proof.prepare(self._backend, weights, recorded),
                "the inference engine to score recorded tokens",
            )

    async def prove(self) -> dict[str, float]:
        """Have the engine show that it has the newest weights. Returns the proof's metrics."""
        prompt_ids = self._recorded.prompt_ids if self._recorded is not None else ()
        return await self._lent(
            "the proof of the engine's weights",
            lambda weights: self._proof.prove(self._backend, weights, prompt_ids),
            "the inference engine to prove that it has the new weights",
        )

    async def _lent(self, borrower: str, use: Callable[[Weights], Coroutine[Any, Any, Result]], what: str) -> Result:
        """Lend the weights to ``borrower`` for ``use``, and name ``what`` is waited for where that takes too long."""

        async def used() -> Result:
            with self._learner.lend(borrower) as weights:
                return await use(weights)

        return await within(self._timeout, what, used())


class Lender:
    """Lends the weights that the engine serves, outside of its ``update_weights``. For one event loop.

    A step and the update after it are one block of ``changing``, so that what is lent is of the engine's own version.
    """

    def __init__(self) -> None:
        self.learner: Trainable | None = None
        """Whose weights they are; set once it is there."""
        self._free = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def lend(self, borrower: str) -> AsyncIterator[Weights]:
        """Yield the weights to ``borrower``, once they do not change; they stay as they are within the block.

        Raises ``BackendError`` where there is no learner.
        """
        async with self._free:
            if self.learner is None:
                raise BackendError(f"there are no weights to lend to {borrower}: nothing is trained")
            with self.learner.lend(borrower) as weights:
                yield weights

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Within the block weights change, and are lent to nobody by ``lend``."""
        async with self._free:
            yield


class NoEngine:
    """Stands in the place of ``EngineWeights`` where nothing is sampled."""

    async def serve(self) -> dict[str, float]:
        """There is no engine to give weights to: no metrics."""
        return {}

    async def record(self, groups: Sequence[Group]) -> None:
        """There will be no proof."""

    async def prove(self) -> dict[str, float]:
        """Nothing is proven: no metrics."""
        return {}
