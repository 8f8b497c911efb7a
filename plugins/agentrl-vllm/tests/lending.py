"""A backend as a run builds it, which lends it weights at any time, and has it start servers by its hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentrl.hosting.contract import Hosts
from agentrl.inference.contract import BackendContext
from agentrl_vllm.backend import VllmBackend

__all__ = ["lent_backend"]


def lent_backend(
    options: dict[str, Any], folder: Path, lend: Any, *, hosts: Hosts | None = None, logs: Path | None = None
) -> VllmBackend:
    """Returns the backend, not started."""
    context = BackendContext(
        folder, max_concurrency=8, options=options, lend=lend, hosts=hosts, logs=logs, say=lambda text: print(text)
    )
    return VllmBackend(context)
