"""Waiting between a server's processes that leaves the cores to others, on a CPU.

vLLM's engine and worker wait for each other by spinning, each on a core that the model, the API process and the run's
agents could use: on two cores they came to half the tokens a second. Loaded in all processes of a server, as a general
plugin of vLLM; imports nothing of agentrl, which need not be installed there.
"""

from __future__ import annotations

import logging
import time

__all__ = ["stop_spinning"]

_LOG = logging.getLogger("vllm.agentrl")
"""Below vLLM's own, which it has set up."""

_NAP_S = 1e-4
"""A step of even a tiny model takes ten times as long."""


def stop_spinning() -> None:
    """Let the processes of a server on a CPU sleep for a moment where they would only yield. Safe to call twice."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():  # There a step may be shorter, and cores are many.
        return
    from vllm.distributed.device_communicators import shm_broadcast

    if hasattr(shm_broadcast, "sched_yield"):  # Another version may wait otherwise.
        shm_broadcast.sched_yield = _nap
        _LOG.info("waits for the server's other processes without spinning")


def _nap() -> None:
    time.sleep(_NAP_S)
