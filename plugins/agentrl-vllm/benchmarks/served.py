"""The backend on servers of its own, for as long as something is measured."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.real import KEYS

from agentrl.inference.contract import BackendContext, Capabilities
from agentrl_vllm.backend import VllmBackend
from agentrl_vllm.client import Client

__all__ = ["Served", "serving"]

_ANSWER_S = 600.0
_RESETS = 50
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Served:
    """A backend that runs."""

    backend: VllmBackend
    capabilities: Capabilities
    client: Client
    """For questions to the servers that the backend has no need to ask."""
    start_s: float
    """Seconds that its servers took to start, all at once."""

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.backend.replicas]

    async def forget(self) -> None:
        """Empty the prefix caches. Nothing may be under way."""
        for url in self.urls:
            for _ in range(_RESETS):
                if (await self.client.post(url, "/reset_prefix_cache"))["success"]:
                    break
                await asyncio.sleep(_PAUSE_S)  # What has just ended may still hold a block.
            else:
                raise RuntimeError(f"the server at {url} keeps its prefix cache")

    async def counted(self, name: str) -> float:
        """What the servers count as ``vllm:<name>``, added up."""
        texts = [await self.client.get(url, "/metrics") for url in self.urls]
        return sum(float(value) for value in re.findall(rf"^vllm:{name}{{.*}} (\S+)$", "\n".join(texts), re.MULTILINE))


@contextlib.asynccontextmanager
async def serving(
    folder: Path, *, concurrency: int, threads: int | None = None, **keys: object
) -> AsyncIterator[Served]:
    """Servers of the model in ``folder``; ``keys`` are the backend's settings.

    ``threads`` is with how many each computes on a CPU; ``None`` is for torch's choice, which is all cores. Where
    anything else runs, a small model may be faster on one.
    """
    env = [] if threads is None else [f"OMP_NUM_THREADS={threads}"]
    context = BackendContext(folder, max_concurrency=concurrency, options={**KEYS, "env": env, **keys}, say=_say)
    backend, client = VllmBackend(context), Client(_ANSWER_S)
    begun = time.perf_counter()
    capabilities = await backend.start()
    try:
        yield Served(backend, capabilities, client, time.perf_counter() - begun)
    finally:
        await client.close()
        await backend.stop()


def _say(text: str) -> None:
    print(text, file=sys.stderr)
