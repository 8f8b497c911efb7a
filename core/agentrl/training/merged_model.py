"""A whole model for a backend that takes no adapters: written when it starts, and removed when it has stopped."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from agentrl.inference.contract import (
    Backend,
    Capabilities,
    Chunk,
    EngineLoad,
    GenerationRequest,
    HeldWeights,
    LoadReporting,
    Sleeper,
    Weights,
)
from agentrl.learner.folder import write_merged
from agentrl.loops import finish_in_thread

__all__ = ["MergedModel", "StartedOnMerged"]


class MergedModel:
    """The model of the adapter in the folder ``adapter``, in a folder for temporary files."""

    def __init__(self, adapter: Path) -> None:
        """Nothing is made before ``write``."""
        self._adapter = adapter
        self.folder = Path(tempfile.gettempdir()) / f"agentrl-merged-{secrets.token_hex(8)}"
        """Where the model is once it is written."""

    def write(self) -> None:
        """Write it. Raises as ``write_merged`` does."""
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700)
            write_merged(self._adapter, self.folder)

    def remove(self) -> None:
        """Remove it. Safe to call twice."""
        shutil.rmtree(self.folder, ignore_errors=True)


class StartedOnMerged:
    """``backend``, which was built for ``model.folder``: an ``agentrl.inference.contract.Backend``."""

    def __init__(self, backend: Backend, model: MergedModel) -> None:
        self._backend = backend
        self._model = model

    @property
    def sleeps(self) -> bool:
        """See ``Sleeper``."""
        return isinstance(self._backend, Sleeper) and self._backend.sleeps

    async def sleep(self) -> None:
        """See ``Sleeper``."""
        if isinstance(self._backend, Sleeper):
            await self._backend.sleep()

    async def wake(self) -> None:
        """See ``Sleeper``."""
        if isinstance(self._backend, Sleeper):
            await self._backend.wake()

    async def start(self) -> Capabilities:
        """Write the model, and start the backend on it."""
        await finish_in_thread(self._model.write)
        return await self._backend.start()

    async def stop(self) -> None:
        """Stop the backend, and remove the model."""
        try:
            await self._backend.stop()
        finally:
            await finish_in_thread(self._model.remove)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """See ``Backend``."""
        async with aclosing(self._backend.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def update_weights(self, weights: Weights) -> int | None:
        """See ``Backend``."""
        return await self._backend.update_weights(weights)

    async def held_weights(self) -> HeldWeights:
        """See ``Backend``."""
        return await self._backend.held_weights()

    def load(self) -> EngineLoad | None:
        """See ``LoadReporting``; ``None`` where the backend does not tell."""
        return self._backend.load() if isinstance(self._backend, LoadReporting) else None

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        """See ``Backend``."""
        return await self._backend.score(ids)
