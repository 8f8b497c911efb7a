"""A backend as a run builds it, which lends it weights at any time, and has it start servers by its hosts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agentrl.hosting.contract import Hosts
from agentrl.inference.contract import BackendContext, Weights
from agentrl.testing.backends.bench import Bench
from agentrl_vllm.backend import VllmBackend

__all__ = ["Owner", "lent_backend"]


class Owner:
    """Lends the reference's weights, as the run does."""

    bench: Bench

    @contextlib.asynccontextmanager
    async def lend(self, borrower: str) -> AsyncIterator[Weights]:
        with self.bench.reference.weights as weights:
            yield weights


def lent_backend(
    options: dict[str, Any], folder: Path, lend: Any, *, hosts: Hosts | None = None, logs: Path | None = None
) -> VllmBackend:
    """Returns the backend, not started."""
    context = BackendContext(
        folder, max_concurrency=8, options=options, lend=lend, hosts=hosts, logs=logs, say=lambda text: print(text)
    )
    return VllmBackend(context)
