"""The inference engine: that it starts, and gives token ids with the logprobs of the learner's model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from agentrl.doctor.agreement import Agreement, agreement
from agentrl.doctor.case import Case
from agentrl.doctor.findings import Finding, note, ok, problem, warning
from agentrl.doctor.sampling import Sample, draw
from agentrl.errors import BackendError
from agentrl.inference.contract import completion_fault
from agentrl.loops import run_in_thread
from agentrl.rollout.contract import Episode
from agentrl.training.serving import serve, within

__all__ = ["engine", "probe"]

_CONTRACT = "use another inference.backend, or mend this one: agentrl.inference.contract says what it gives"
_FLOAT32 = 1e-3
"""Mean difference of logprobs that float32 explains."""
_HALF_TYPES = ("bfloat16", "float16")
_HALF = 0.1
"""The same of engines that compute in 16 bits."""


async def engine(case: Case) -> AsyncIterator[Finding]:
    """Start what a run would start. Raises as that does."""

    async def finished(episode: Episode) -> None:
        case.episodes.append(episode)
        case.episode_ended()

    began = time.monotonic()
    version, warn, say = case.learner.version, case.warn, case.doing
    serving = serve(case.parts, version, finished=finished, warn=warn, say=say, trains=True, unstopped=_raise)
    case.serving = await case.stack.enter_async_context(serving)
    seconds, can = time.monotonic() - began, case.serving.capabilities
    yield ok(
        f"{case.config.inference.backend.name} started in {seconds:.1f} s; a context of {can.context_length:,} tokens, "
        f"{can.max_concurrency} completions at once, takes new weights; {', '.join(sorted(can.sampling))}",
        seconds=round(seconds, 3),
        context_length=can.context_length,
        max_concurrency=can.max_concurrency,
        sampling=sorted(can.sampling),
    )
    case.doing("sampling, and scoring the samples with the learner's model")
    async for finding in probe(case, "to sample"):
        yield finding


def _raise(error: Exception) -> None:
    raise error


async def probe(case: Case, what: str) -> AsyncIterator[Finding]:
    """Sample under the learner's weights, and hold the samples against these."""
    prompt = case.renderer.render([{"role": "user", "content": "What is 12 + 30? Think first."}])
    began = time.monotonic()
    async with within(case.config.inference.timeout, f"the inference engine {what}"):
        samples = await draw(case.serving.backend, prompt)
    seconds = time.monotonic() - began
    version, vocabulary = case.learner.version, case.learner.model.config.get_text_config().vocab_size
    faults = [
        wrong
        for each in samples
        if (wrong := completion_fault(each, vocabulary=vocabulary, versions=(version, version)))
    ]
    if faults:
        yield problem(faults[0], fix=_CONTRACT, like=BackendError, blocks=True, faulty=len(faults), of=len(samples))
        return
    tokens = sum(len(sample.ids) for sample in samples)
    yield ok(
        f"{tokens} token ids came with their logprobs, of version {version}; {tokens / seconds:,.0f} tokens/s of "
        f"{len(samples)} completions",
        tokens=tokens,
        tokens_per_second=round(tokens / seconds, 1),
    )
    yield _agreement(await run_in_thread(agreement, case.learner, samples), half=_computes_in_half(case))
    if "seed" in case.serving.capabilities.sampling and samples[0].ids != samples[-1].ids:
        yield _unrepeated(samples)


def _computes_in_half(case: Case) -> bool:
    """Whether 16 bits are what was asked for: by the name that engines give such a key, or on a GPU by default."""
    dtype = case.config.inference.backend.options.get("dtype", "auto")
    return dtype in _HALF_TYPES or (dtype == "auto" and case.learner.model.device.type != "cpu")


def _agreement(found: Agreement, *, half: bool) -> Finding:
    figures = {"mean_difference": found.worst_mean, "highest_difference": found.highest, "tokens": found.tokens}
    text = (
        f"logprobs differ from the learner's by {found.worst_mean:.2g} in the mean at temperature "
        f"{found.temperature:g}, by at most {found.highest:.2g}"
    )
    if not found.worst_mean <= _HALF:
        fix = "the engine has other weights, or gives logprobs of another temperature: they are of what was drawn from"
        return problem(text, fix=f"{fix}; {_CONTRACT}", like=BackendError, blocks=True, **figures)
    if found.worst_mean > _FLOAT32 and half:
        return note(f"{text}, which is rounding to 16 bits: policy/mismatch_kl shows what comes of it", **figures)
    if found.worst_mean > _FLOAT32:
        fix = "set the engine to float32, where it has a dtype, and see whether they agree then"
        return warning(f"{text}, which is more than float32 explains", fix=fix, **figures)
    return ok(f"{text}: they are the same model's", **figures)


def _unrepeated(samples: list[Sample]) -> Finding:
    return warning(
        f"a completion with the seed {samples[0].seed} did not repeat, so that evaluations will not either",
        fix="compare evaluations as samples, or use an engine whose batches do not change its results",
    )
