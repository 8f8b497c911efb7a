"""The learner and the inference engine: that the one loads, the other starts, and both compute the same model.

Three sections: ``learner`` loads the model, ``engine`` starts what a run would start, and ``step`` trains on the
episodes that the examination ran, in memory, and gives the engine the new weights. Before and after that step the
engine samples, and the learner scores the samples: a token's log-probability has to be the same on both sides. The new
weights are proven as they are in a run.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentrl.doctor.report import Finding, note, ok, problem, warning
from agentrl.errors import BackendError, RunError
from agentrl.inference.contract import Backend, GenerationRequest, Sampling, completion_fault
from agentrl.inference.grammars import grammars_of
from agentrl.learner.adapters import plan_adapter
from agentrl.learner.contract import Targets
from agentrl.learner.learner import Learner
from agentrl.loops import run_in_thread
from agentrl.rollout.contract import Episode
from agentrl.training.columns import Columns
from agentrl.training.deadlines import within
from agentrl.training.proof import Recorded, UpdateProof
from agentrl.training.serving import serve
from agentrl.training.sources import Sources

if TYPE_CHECKING:
    from agentrl.doctor.examination import Case

__all__ = ["engine", "learner", "step"]

_CONTRACT = "use another inference.backend, or mend this one: agentrl.inference.contract says what it gives"
_TEMPERATURES = (1.0, 0.7)
"""The temperatures that are sampled at; at the second, an engine shows that ignores them in its log-probabilities."""
_EACH = 4
"""The number of completions at each temperature."""
_TOKENS = 16
"""The most tokens of a completion."""
_FLOAT32 = 1e-3
"""The mean difference of log-probabilities, in nats, that rounding to float32 explains."""
_HALF_TYPES = ("bfloat16", "float16")
_HALF = 0.1
"""The same for engines that compute in 16 bits."""
_RATIO = 0.1
"""The departure from 1 of the mean importance ratio that an engine in 16 bits explains."""


def learner(case: Case) -> Iterator[Finding]:
    """Load the model where it is trained.

    Raises ``ConfigError`` for a model that does not load, and for a device that is not there.
    """
    began = time.monotonic()
    algorithm, config = case.algorithm, case.config
    case.learner = loaded = Learner(case.parts.model_folder, config.training, algorithm.loss, config.seed)
    seconds = time.monotonic() - began
    device = str(loaded.model.device)
    if config.training.lora is not None:
        plan = plan_adapter(case.parts.model_folder, config.training.lora)
        yield ok(str(plan), trained_parameters=plan.trained)
    where = f"loaded on {device} in {seconds:.1f} s"
    figures = {"device": device, "seconds": round(seconds, 3), "forest": loaded.rows_because is None}
    if loaded.rows_because is None:
        yield ok(f"{where}; it takes the forest: shared prefixes are computed once", **figures)
    else:
        yield note(f"{where}; {loaded.rows_because}", **figures)


async def engine(case: Case) -> AsyncIterator[Finding]:
    """Start the engine and the gateway as a run would, and compare samples. Raises what the start of a run raises."""

    async def finished(episode: Episode) -> None:
        case.episodes.append(episode)
        case.episode_ended()

    began = time.monotonic()
    serving = serve(case.parts, case.backend, finished=finished, warn=case.warn, trains=True, unstopped=_raise)
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
    async for finding in _compared(case, "to sample"):
        yield finding


def _raise(error: Exception) -> None:
    raise error


async def _compared(case: Case, what: str) -> AsyncIterator[Finding]:
    """Sample under the learner's weights, and compare the samples with what the learner computes.

    ``what`` says in a message about the deadline what the engine was to do.
    """
    prompt = case.renderer.render([{"role": "user", "content": "What is 12 + 30? Think first."}])
    began = time.monotonic()
    waited_for = f"the inference engine {what}"
    samples = await within(case.config.inference.timeout, waited_for, _samples(case.serving.backend, prompt))
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
    yield _agreed(await run_in_thread(_agreement, case.learner, samples), half=_computes_in_half(case))
    if "seed" in case.serving.capabilities.sampling and samples[0].ids != samples[-1].ids:
        yield _unrepeated(samples)


def _computes_in_half(case: Case) -> bool:
    """Whether the learner computes in 16 bits, or the engine is to: by its key ``dtype``, or by default on a GPU."""
    if case.learner.model.dtype.itemsize == 2:
        return True
    dtype = case.config.inference.backend.options.get("dtype", "auto")
    return dtype in _HALF_TYPES or (dtype == "auto" and case.learner.model.device.type != "cpu")


def _agreed(found: _Agreement, *, half: bool) -> Finding:
    figures = {"mean_difference": found.worst_mean, "highest_difference": found.highest, "tokens": found.tokens}
    text = (
        f"logprobs differ from the learner's by {found.worst_mean:.2g} in the mean at temperature "
        f"{found.temperature:g}, by at most {found.highest:.2g}"
    )
    if not found.worst_mean <= _HALF:
        fix = "the engine has other weights, or its logprobs are not of the distribution that it drew from"
        return problem(text, fix=f"{fix}; {_CONTRACT}", like=BackendError, blocks=True, **figures)
    if found.worst_mean > _FLOAT32 and half:
        return note(
            f"{text}, which is rounding to 16 bits: policy/mismatch_kl shows what it does to training", **figures
        )
    if found.worst_mean > _FLOAT32:
        fix = "set the engine's dtype to float32, where it has one, and see whether they agree then"
        return warning(f"{text}, which is more than float32 explains", fix=fix, **figures)
    return ok(f"{text}: they are the same model's", **figures)


def _unrepeated(samples: list[_Sample]) -> Finding:
    return warning(
        f"a completion with the seed {samples[0].seed} did not repeat, so evaluations will not repeat either",
        fix="compare evaluations as samples, or use an engine whose batches do not change its results",
    )


async def step(case: Case) -> AsyncIterator[Finding]:
    """Train one step on the groups that were run, and give the engine the new weights; nothing is written.

    Raises ``RunError`` for a batch that does not fit, and ``BackendError`` for weights that the engine refuses, or of
    which it cannot prove that it has them.
    """
    timeout = case.config.inference.timeout
    proof, recorded = UpdateProof(case.warn), Recorded.of(each.tree for group in case.groups for each in group.episodes)
    if recorded is not None:
        await within(timeout, "the inference engine to score recorded tokens", _prepared(case, proof, recorded))
    began = time.monotonic()
    learned = await within(timeout, "the learner's step", run_in_thread(_learn, case))
    if not learned["tokens/trained"]:
        yield note("no episode has a token to be trained")
        return
    yield _learned(learned, time.monotonic() - began)
    case.doing("giving the engine the new weights")
    proving = _given(case, proof, recorded)
    proven = await within(timeout, "the inference engine to take new weights", proving)
    yield _proven(proven, case.learner.version)
    async for finding in _compared(case, "to sample under new weights"):
        yield finding


async def _prepared(case: Case, proof: UpdateProof, recorded: Recorded) -> None:
    with case.learner.lend("the proof of the engine's weights") as weights:
        await proof.prepare(case.serving.backend, weights, recorded)


async def _given(case: Case, proof: UpdateProof, recorded: Recorded | None) -> dict[str, float]:
    """Give the engine the learner's weights, and have it prove that it has them."""
    with case.learner.lend("the inference engine") as weights:
        await case.serving.backend.update_weights(weights)
        return await proof.prove(case.serving.backend, weights, recorded.prompt_ids if recorded else ())


def _proven(metrics: Mapping[str, float], version: int) -> Finding:
    figures = {name.removeprefix("proof/").removeprefix("seconds/"): value for name, value in metrics.items()}
    tensors, followed = metrics["proof/tensors"], metrics.get("proof/followed")
    seen = [f"all {tensors:.0f} tensors of version {version} are the learner's"] if tensors else []
    if followed is not None:
        seen.append(f"its logprobs of recorded tokens have moved by {followed:.0%} of the learner's movement")
    text = "the engine has the new weights: " + "; ".join(seen)
    if seen:
        return ok(text, **figures)
    return note(
        "the engine gives no digests of its tensors, and the step moved its logprobs by less than it can be measured: "
        "that it has the new weights will show in later steps",
        **figures,
    )


def _learn(case: Case) -> dict[str, float]:
    choices = case.config.rollout.constrained == "train"
    sources = Sources.of(case.algorithm, case.config, case.plugins, case.folder)
    columns = Columns.load(case.algorithm, case.learner, sources, case.config)
    prepared = columns.prepare(case.groups, allowed=grammars_of(case.folder), choices=choices)
    return {**prepared.account.counts, **case.learner.step(prepared.batch).metrics}


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
        return warning(
            text, fix="sampler and learner do not agree: see what the section engine says of the logprobs", **figures
        )
    return ok(text, **figures)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One completion; ``ids``, ``logprobs`` and ``versions`` should have one entry a token."""

    prompt_ids: tuple[int, ...]
    temperature: float
    seed: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    finish: str | None


async def _samples(backend: Backend, prompt_ids: Sequence[int]) -> list[_Sample]:
    """Short completions of one prompt, sampled at once; the last repeats the first, seed included."""
    wanted = [(temperature, seed) for temperature in _TEMPERATURES for seed in range(_EACH)]
    return await asyncio.gather(*(_sample(backend, tuple(prompt_ids), *each) for each in [*wanted, wanted[0]]))


async def _sample(backend: Backend, prompt_ids: tuple[int, ...], temperature: float, seed: int) -> _Sample:
    sampling = Sampling(temperature=temperature, max_tokens=_TOKENS, seed=seed)
    async with aclosing(backend.generate(GenerationRequest(prompt_ids, sampling))) as stream:
        chunks = [chunk async for chunk in stream]
    return _Sample(
        prompt_ids=prompt_ids,
        temperature=temperature,
        seed=seed,
        ids=tuple(token for chunk in chunks for token in chunk.ids),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        versions=tuple(version for chunk in chunks for version in chunk.versions),
        finish=chunks[-1].finish if chunks else None,
    )


@dataclass(frozen=True, slots=True)
class _Agreement:
    """Differences of logprobs between engine and learner, in nats."""

    worst_mean: float
    """The mean over the tokens of one temperature, at the temperature where it is largest."""
    temperature: float
    """That temperature."""
    highest: float
    """The largest difference of a single token."""
    tokens: int
    """The number of tokens that were compared."""


def _agreement(learner: Learner, samples: Sequence[_Sample]) -> _Agreement:
    """Score ``samples`` as the learner computes, and compare. Each has as many logprobs as ids."""
    lengths = [len(sample.ids) for sample in samples]
    targets = Targets(
        path=np.repeat(np.arange(len(samples)), lengths),
        depth=np.concatenate([len(sample.prompt_ids) - 1 + np.arange(len(sample.ids)) for sample in samples]),
        token=np.concatenate([np.array(sample.ids, dtype=np.int64) for sample in samples]),
        temperature=np.repeat([sample.temperature for sample in samples], lengths),
    )
    paths = [np.array([*sample.prompt_ids, *sample.ids], dtype=np.int64) for sample in samples]
    scored = learner.score(targets, paths).logprob
    differences = np.abs(scored - np.concatenate([np.array(sample.logprobs) for sample in samples]))
    means = {t: float(differences[targets.temperature == t].mean()) for t in set(targets.temperature.tolist())}
    worst = max(means, key=means.__getitem__)
    return _Agreement(means[worst], worst, float(differences.max()), len(scored))
