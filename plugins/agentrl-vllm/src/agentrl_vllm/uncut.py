"""Logprobs of the distribution before ``top_p`` and ``top_k`` cut it, as agentrl's contract has them.

vLLM has logprobs of the model alone (``raw_logprobs``), without the temperature, or of what was drawn from
(``processed_logprobs``), after the cut. Loaded in a server's workers before they make their samplers; imports nothing
of agentrl, which need not be installed there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

__all__ = ["keep_uncut_logprobs"]


def keep_uncut_logprobs() -> None:
    """Let the samplers that are made from now on report ``processed_logprobs`` as they were before the cut.

    A vLLM whose samplers are others keeps them: what it then reports is found out before anything is sampled.
    """
    with suppress(ImportError, AttributeError):
        from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

        _patch_first_runner(TopKTopPSampler)
    # The second model runner needs Triton, without which it is not used.
    with suppress(ImportError, AttributeError):
        from vllm.v1.worker.gpu.sample.sampler import Sampler

        _patch_second_runner(Sampler)


def _patch_first_runner(sampler: Any) -> None:
    """Its ``forward(logits, generators, k, p)`` gives the sampled ids, and the logprobs that it is to report."""
    make = sampler.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if not hasattr(self, "logprobs_mode"):
            return
        cut = self.forward

        def forward(logits: Any, generators: Any, k: Any, p: Any) -> tuple[Any, Any]:
            if (k is None and p is None) or self.logprobs_mode != "processed_logprobs":
                result: tuple[Any, Any] = cut(logits, generators, k, p)
                return result
            uncut = logits.log_softmax(dim=-1)  # Of float32, and before `cut` may write over it.
            return cut(logits, generators, k, p)[0], uncut

        self.forward = forward

    sampler.__init__ = __init__


def _patch_second_runner(sampler: Any) -> None:
    """Its ``_sample_random(logits, …, top_k, top_p, fused)`` gives the sampled ids, and the logits to report."""
    cut = sampler._sample_random

    def _sample_random(self: Any, logits: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        uncut = logits.clone()
        return cut(self, logits, *args, **kwargs)[0], uncut

    sampler._sample_random = _sample_random
