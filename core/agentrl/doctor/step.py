"""A step of training on the episodes, in memory: the learner's update, and the engine with the new weights."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping

from agentrl.doctor.case import Case
from agentrl.doctor.engine import probe
from agentrl.doctor.findings import Finding, note, ok, problem, warning
from agentrl.errors import RunError
from agentrl.loops import run_in_thread
from agentrl.training.serving import within

__all__ = ["step"]

_RATIO = 0.1
"""Departure from 1 of the mean importance ratio that a 16-bit engine explains."""


async def step(case: Case) -> AsyncIterator[Finding]:
    """Raises ``RunError`` for a batch that does not fit, and ``BackendError`` for weights that the engine refuses."""
    timeout = case.config.inference.timeout
    began = time.monotonic()
    async with within(timeout, "the learner's step"):
        learned = await run_in_thread(case.learner.step, case.groups)
    if not learned["tokens/trained"]:
        yield note("no episode has a token to be trained")
        return
    yield _learned(learned, time.monotonic() - began)
    case.doing("giving the engine the new weights")
    async with within(timeout, "the inference engine to take new weights"):
        await case.serving.backend.update_weights(case.learner.weights())
    async for finding in probe(case, "to sample under new weights"):
        yield finding


def _learned(learned: Mapping[str, float], seconds: float) -> Finding:
    tokens, norm = learned["tokens/trained"], learned.get("policy/grad_norm", 0.0)
    ratio, kl = learned.get("policy/ratio_mean", 1.0), learned.get("policy/mismatch_kl", 0.0)
    figures = {
        "tokens": tokens,
        "grad_norm": norm,
        "ratio_mean": ratio,
        "mismatch_kl": kl,
        "seconds": round(seconds, 3),
    }
    text = (
        f"a step on {tokens:,.0f} sampled tokens took {seconds:.1f} s; gradient norm {norm:.3g}, mean importance ratio "
        f"{ratio:.4f}, mismatch KL {kl:.2g}"
    )
    if not math.isfinite(norm):
        fix = "set training.precision=float32, or lower the rewards' scale"
        return problem(text, fix=fix, like=RunError, blocks=True, **figures)
    if abs(ratio - 1.0) > _RATIO:
        return warning(text, fix="sampler and learner do not agree: see the engine's logprobs above", **figures)
    return ok(text, **figures)
