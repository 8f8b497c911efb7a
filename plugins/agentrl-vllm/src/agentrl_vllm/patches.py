"""Changes to vLLM inside the processes of a server.

``report_unrestricted_logprobs`` is loaded in the workers before they make their samplers, and ``stop_spinning`` in all
processes, as a general plugin of vLLM. This module imports nothing of agentrl, which need not be installed there.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

__all__ = ["report_unrestricted_logprobs", "stop_spinning"]


def report_unrestricted_logprobs() -> None:
    """Let samplers that are made from now on report ``processed_logprobs`` before ``top_p`` and ``top_k`` cut them.

    vLLM itself has logprobs of the model alone (``raw_logprobs``), without the temperature, or those of what was drawn
    from (``processed_logprobs``), after the cut. A vLLM with other samplers is left as it is: what it reports is found
    out before anything is sampled.
    """
    with suppress(ImportError, AttributeError):
        from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

        _patch_first_runner(TopKTopPSampler)
    # The second model runner needs Triton, without which it is not used.
    with suppress(ImportError, AttributeError):
        from vllm.v1.worker.gpu.sample.sampler import Sampler

        _patch_second_runner(Sampler)


def _patch_first_runner(sampler: Any) -> None:
    """Wrap ``forward(logits, generators, k, p)``, which returns the sampled ids and the logprobs to report."""
    make = sampler.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if not hasattr(self, "logprobs_mode"):
            return
        sample = self.forward

        def forward(logits: Any, generators: Any, k: Any, p: Any) -> tuple[Any, Any]:
            if (k is None and p is None) or self.logprobs_mode != "processed_logprobs":
                result: tuple[Any, Any] = sample(logits, generators, k, p)
                return result
            unrestricted = logits.log_softmax(dim=-1)  # Of float32, and before `sample` may write over it.
            return sample(logits, generators, k, p)[0], unrestricted

        self.forward = forward

    sampler.__init__ = __init__


def _patch_second_runner(sampler: Any) -> None:
    """Wrap ``_sample_random(logits, …, top_k, top_p, fused)``, which returns sampled ids and the logits to report."""
    sample = sampler._sample_random

    def _sample_random(self: Any, logits: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        unrestricted = logits.clone()
        return sample(self, logits, *args, **kwargs)[0], unrestricted

    sampler._sample_random = _sample_random


_LOG = logging.getLogger("vllm.agentrl")
"""A child of vLLM's own logger, which vLLM has set up."""

_NAP_S = 1e-4
"""Seconds of a nap: a step of even a tiny model takes ten times as long."""


def stop_spinning() -> None:
    """Let the processes of a server on a CPU sleep for a moment where they would spin. Safe to call twice.

    vLLM's engine and worker wait for each other by spinning, each on a core that the model, the API process and the
    run's agents could use: on two cores that cost half of the tokens a second.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():  # There a step may be shorter, and cores are many.
        return
    from vllm.distributed.device_communicators import shm_broadcast

    if hasattr(shm_broadcast, "sched_yield"):  # Another version may wait otherwise.
        shm_broadcast.sched_yield = _nap
        _LOG.info("waits for the server's other processes without spinning")


def _nap() -> None:
    time.sleep(_NAP_S)
