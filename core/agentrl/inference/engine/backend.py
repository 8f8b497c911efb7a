"""The backend ``torch``: a slot-based continuous-batching decoder of our own, one for CPU and CUDA.

Transformers has continuous batching too, but not what the contract asks: it has no seed and no stop strings per
request, fails all requests with one prompt that does not fit or with temperature 0, serves KV of old weights to a
prompt that equals one in flight, and its step costs several times a small model's forward. So requests are decoded
here, in rows of a dense KV block, through the model's own forward.

Callers on any event loop check their request, send it to the engine's thread and read its chunks from a queue.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from agentrl.errors import AgentRLError, BackendError, ConfigError, PromptTooLong, UnsupportedSampling, near_matches
from agentrl.inference.contract import (
    BackendContext,
    Capabilities,
    Chunk,
    EngineLoad,
    GenerationRequest,
    Grammar,
    HeldWeights,
    Sampling,
    Weights,
)
from agentrl.inference.engine.cache import Ids
from agentrl.inference.engine.engine import Counters, Engine, EngineLimits, model_failed
from agentrl.inference.engine.generation import ChunkQueue, Generation
from agentrl.inference.engine.loading import TorchSettings, cannot_share, check_reproducible, dtype_of, load_engine
from agentrl.inference.engine.sampler import StopStrings
from agentrl.inference.engine.sharing import elsewhere
from agentrl.inference.grammars import Grammars, GrammarState
from agentrl.inference.sharing.contract import SharedWeights
from agentrl.loops import run_in_thread
from agentrl.machine import find_device

__all__ = ["TorchBackend"]

Message = Callable[[Engine], None]
_LOOK_S = 0.05
"""Seconds after which an engine that stands still looks whether it is to end."""
Result = TypeVar("Result")


class TorchBackend:
    """Samples from a Hugging Face model in this process. Every method may be called from any loop and thread."""

    Settings = TorchSettings
    takes_adapters = True

    def __init__(self, context: BackendContext, settings: TorchSettings | None = None) -> None:
        """``settings`` are by default the context's options, validated.

        Raises ``ConfigError`` for options that are not valid, or a device that this machine does not have, or on
        which ``reproducible`` cannot be had.
        """
        self._context = context
        self._settings = settings or _settings(context.options)
        find_device(self._settings.device, "inference.backend.device")
        check_reproducible(self._settings, context.precision)
        self._thread: EngineThread | None = None
        self._shared: SharedWeights | None = None

    def share(self, weights: SharedWeights | None) -> bool:
        """Compute with ``weights`` from the start on; see ``SharingBackend``.

        Raises ``ConfigError`` where ``share_weights`` is true and they are on another device or of another type.
        """
        wanted = self._settings.share_weights
        if wanted is False:
            return False
        reason = "the learner is in other processes" if weights is None else self._unlike(weights)
        if reason is None:
            self._shared = weights
        elif wanted is True:
            raise cannot_share(reason)
        else:
            self._context.say(f"the engine keeps a copy of the learner's weights: {reason}")
        return reason is None

    def _unlike(self, weights: SharedWeights) -> str | None:
        device = find_device(self._settings.device, "inference.backend.device")
        return elsewhere(weights, device, dtype_of(self._settings, self._context.precision, device))

    def paused(self) -> AbstractContextManager[None]:
        """Returns a block in which the engine stands still; see ``Pause``. Raises ``BackendError`` where it does not
        within the time of the context."""
        thread = self._thread
        return nullcontext() if thread is None else thread.paused(self._context.timeout)

    async def start(self) -> Capabilities:
        """Load the model. Raises ``BackendError`` for one that cannot be loaded or run exactly."""
        if self._thread is None or self._thread.ended is not None:
            self._thread = EngineThread(lambda: load_engine(self._context, self._settings, self._shared))
        engine = await asyncio.shield(asyncio.wrap_future(self._thread.ready))
        limits = engine.limits
        capabilities = Capabilities(
            limits.context_length,
            self._context.max_concurrency,
            reproducible=limits.reproducible,
            notes=limits.notes,
        )
        absent = {"stop"} if limits.tokenizer is None else set()
        added = {"logit_bias"} if limits.grammars is None else {"logit_bias", "grammar"}
        return replace(capabilities, sampling=(capabilities.sampling - absent) | added)

    async def stop(self) -> None:
        """End what is in flight with ``BackendError`` and free the model. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await run_in_thread(thread.stop)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Sample one completion; see ``Backend``."""
        thread, engine = self._running()
        generation = _generation(request, engine.limits)
        if request.sampling.grammar is not None and engine.limits.grammars is not None:
            generation.grammar = await _begun(request.sampling, request.sampling.grammar, engine.limits.grammars)
        queue = generation.queue
        if not thread.send(lambda engine: engine.submit(generation)):
            raise thread.failure()
        finished = False
        try:
            while not finished:
                chunk = await queue.next()
                finished = chunk.finish is not None
                yield chunk
        finally:
            if not finished:
                thread.send(lambda engine: engine.cancel(queue))

    async def update_weights(self, weights: Weights) -> int:
        """Put new weights in place between two steps. Returns how many bytes have come; see ``Backend``.

        Raises ``BackendError``, with the old weights intact, where the new ones do not fit the model.
        """
        return await self._between_steps(lambda engine: engine.update(weights))

    async def held_weights(self) -> HeldWeights:
        """Returns the digests of the tensors that the engine computes with; see ``Backend``."""
        return await self._between_steps(lambda engine: engine.held())

    async def score(self, ids: Sequence[int]) -> Sequence[float]:
        """Returns the engine's log-probabilities of ``ids[1:]``; see ``Backend``."""
        _, engine = self._running()
        checked = _checked_prompt(ids, engine.limits.vocabulary)
        if len(checked) > engine.limits.context_length:
            raise PromptTooLong(
                f"{len(checked)} tokens cannot be scored in a context of {engine.limits.context_length}"
            )
        return await self._between_steps(lambda engine: engine.score(checked)) if len(checked) > 1 else ()

    async def _between_steps(self, do: Callable[[Engine], Result]) -> Result:
        """Returns what ``do`` makes of the engine in its thread, between two steps, or raises its error."""
        thread, _ = self._running()
        done: Future[Result] = Future()

        def answer(engine: Engine) -> None:
            try:
                done.set_result(do(engine))
            except AgentRLError as error:  # Of whoever lends weights, too: a process that it has lost is no fault here.
                done.set_exception(error)
            except Exception as error:
                done.set_exception(model_failed(error, "the engine failed between two steps"))

        if not thread.send(answer):
            raise thread.failure()
        answered = asyncio.wrap_future(done)
        answered.add_done_callback(lambda done: done.cancelled() or done.exception())  # Nobody may wait for it then.
        return await asyncio.shield(answered)

    def load(self) -> EngineLoad | None:
        """Returns how many requests it samples and how many wait for rows or KV cache; ``None`` before it runs."""
        thread = self._thread
        if thread is None or not thread.ready.done() or thread.ready.exception() is not None:
            return None
        counters = thread.ready.result().snapshot()
        return EngineLoad(counters.running, counters.waiting)

    def counters(self) -> Counters:
        """Returns what the engine has done since it started. Raises ``BackendError`` where it is not running."""
        return self._running()[1].snapshot()

    def _running(self) -> tuple[EngineThread, Engine]:
        thread = self._thread
        if thread is None or not thread.ready.done():
            raise BackendError("the torch engine is not running", fix="await start() first")
        return thread, thread.ready.result()


def _settings(options: dict[str, object]) -> TorchSettings:
    try:
        return TorchSettings.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        unknown = first["type"] == "extra_forbidden"
        raise ConfigError(
            f"inference.backend.{name}={first['input']!r}: {first['msg']}",
            fix=near_matches(name, TorchSettings.model_fields)
            if unknown
            else TorchSettings.model_fields[name].description,
        ) from error


# Requests


def _generation(request: GenerationRequest, limits: EngineLimits) -> Generation:
    """A checked request, ready for the engine, whose chunks come to the running event loop.

    Raises ``PromptTooLong``, ``UnsupportedSampling`` or ``BackendError``.
    """
    sampling = request.sampling
    _check_sampling(sampling, limits)
    prompt = _checked_prompt(request.prompt_ids, limits.vocabulary)
    if len(prompt) + 1 > limits.context_length:
        raise PromptTooLong(
            f"the prompt's {len(prompt)} tokens leave no room in a context of {limits.context_length}",
            fix="shorten the prompt, or raise inference.backend.context_length where the model allows it",
        )
    room = limits.context_length - len(prompt)
    stops = StopStrings(limits.tokenizer, sampling.stop) if sampling.stop and limits.tokenizer else None
    sampling = replace(sampling, stop_ids=frozenset(sampling.stop_ids))
    return Generation(ChunkQueue(), sampling, prompt, request.stream, min(sampling.max_tokens or room, room), stops)


async def _begun(sampling: Sampling, grammar: Grammar, grammars: Grammars) -> GrammarState:
    """Where a completion begins in its grammar. Raises ``UnsupportedSampling`` for a grammar that is wrong."""
    return grammars.state(await grammars.compiled(grammar), sampling.stop_ids)


def _checked_prompt(prompt_ids: Sequence[int], vocabulary: int) -> Ids:
    """The prompt as an array. Raises ``BackendError``."""
    ids = np.asarray(prompt_ids)
    if ids.ndim != 1 or not len(ids):
        raise BackendError("the prompt has no token ids", fix="send at least one")
    if ids.dtype.kind not in "iu":
        raise BackendError(f"the prompt's token ids are {ids.dtype}, not integers", fix="send integers")
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise BackendError(
            f"prompt holds token id {outside[0]}, the model's vocabulary has {vocabulary}",
            fix="encode the prompt with the tokenizer in the model's folder",
        )
    return ids.astype(np.int64)


_RANGES = {
    "temperature": "use 0 for greedy, or a positive number",
    "top_p": "use a number above 0 and at most 1",
    "top_k": "use 0 for all, or a positive integer",
    "max_tokens": "use at least 1",
    "top_logprobs": "use 0 to the size of the vocabulary",
    "stop": "leave empty strings out",
    "logit_bias": "use finite numbers, for ids of the vocabulary",
}


def _check_sampling(sampling: Sampling, limits: EngineLimits) -> None:
    """Raises ``UnsupportedSampling`` for a value that has no meaning, and for what needs a tokenizer without one."""
    for name, valid in {
        "temperature": math.isfinite(sampling.temperature) and sampling.temperature >= 0,
        "top_p": 0 < sampling.top_p <= 1,
        "top_k": sampling.top_k >= 0,
        "max_tokens": sampling.max_tokens is None or sampling.max_tokens >= 1,
        "top_logprobs": 0 <= sampling.top_logprobs <= limits.vocabulary,
        "stop": all(sampling.stop),
        "logit_bias": all(
            0 <= token < limits.vocabulary and math.isfinite(bias) for token, bias in sampling.logit_bias
        ),
    }.items():
        if not valid:
            raise UnsupportedSampling(f"{name}={getattr(sampling, name)!r} is out of range", fix=_RANGES[name])
    if sampling.stop and limits.tokenizer is None:
        raise UnsupportedSampling(
            "stop strings need the model's tokenizer, and its folder has none", fix="use stop_ids, or add it"
        )
    if sampling.grammar is not None and limits.grammars is None:
        missing = "the model's tokenizer, and its folder has none" if limits.tokenizer is None else "xgrammar"
        raise UnsupportedSampling(f"grammars need {missing}", fix="pip install 'agentrl-core[train]'")


class Standstill:
    """A message at which the engine's thread waits, while the weights in its memory change."""

    def __init__(self, stopping: threading.Event) -> None:
        """With ``stopping`` the wait is over."""
        self._stopping = stopping
        self._reached = threading.Event()
        self._over = threading.Event()
        self._abandoned = False

    def __call__(self, engine: Engine) -> None:
        """Stand still in the engine's thread, and then follow the weights."""
        self._reached.set()
        while not self._over.wait(_LOOK_S):
            if self._stopping.is_set():
                return
        if not self._abandoned:
            engine.follow()

    def reached(self, send: Callable[[], bool], seconds: float | None) -> bool:
        """Have ``send`` send this, unless the engine stands still already, and wait until it does.

        Returns ``False``, and gives the standstill up, where that takes more than ``seconds``. An engine whose thread
        has ended stands still.
        """
        if self._reached.is_set() or not send() or self._reached.wait(seconds):
            return True
        self._abandoned = True
        self._over.set()
        return False

    def end(self) -> None:
        """Let the engine go on, under the weights as they are now."""
        self._over.set()


class EngineThread:
    """Builds an engine in a thread of its own and runs it there until it is stopped.

    The thread takes messages between steps and sleeps while there is nothing to do.
    """

    def __init__(self, build: Callable[[], Engine]) -> None:
        self.ready: Future[Engine] = Future()
        """The engine, or what ``build`` raised."""
        self.ended: BackendError | None = None
        """Why the thread is over, once it is."""
        self._build = build
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._standing: Standstill | None = None
        """Where the engine stands still since a change of its weights has failed."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="agentrl-engine", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> bool:
        """Have ``message`` run between two steps. Returns ``False`` where the thread has ended and it will not run."""
        with self._lock:
            if self.ended is None:
                self._messages.put(message)
            return self.ended is None

    def failure(self) -> BackendError:
        """Returns a new error that says why the thread has ended."""
        assert self.ended is not None
        failure = BackendError(self.ended.message, fix=self.ended.fix)
        failure.__cause__ = self.ended.__cause__
        return failure

    def stop(self) -> None:
        """End the thread after its current step, and all generations with it. Waits until it is over."""
        # In this order: no step with torn weights comes between the end of a standstill and that of the thread.
        self._messages.put(None)
        self._stopping.set()
        self._thread.join()

    @contextmanager
    def paused(self, seconds: float | None) -> Iterator[None]:
        """A block in which the engine stands still between two steps; see ``Pause``. Where it does not stand still
        within ``seconds``, raise ``BackendError``."""
        standing = self._standing or Standstill(self._stopping)
        self._standing = None
        if not standing.reached(lambda: self.send(standing), seconds):
            raise BackendError(f"waited {seconds:g} s for the engine to pause between two tokens")
        try:
            yield
        except BaseException:
            self._standing = standing  # With weights that may be torn it must not go on.
            raise
        standing.end()

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                engine = self._build()
            except BaseException as error:
                self._end(BackendError("the engine did not start"))
                self.ready.set_exception(error)
                return
            self.ready.set_result(engine)
            reason = BackendError("the engine was stopped", fix="start the backend again")
            try:
                self._loop(engine)
            except BaseException as error:
                reason = BackendError(f"the engine's thread died of {type(error).__name__}: {error}")
                reason.__cause__ = error
            self._end(reason)
            self._drain(engine)
            engine.fail_all(reason)
            engine.deliver()

    def _loop(self, engine: Engine) -> None:
        while self._receive(engine):
            try:
                engine.step()
            except Exception as error:
                engine.fail_all(model_failed(error, "the engine's step failed"))
                engine.deliver()

    def _receive(self, engine: Engine) -> bool:
        """Run all messages, waiting for one while the engine is idle. Returns whether to go on."""
        try:
            message = self._messages.get(block=not engine.busy)
            while message is not None:
                message(engine)
                message = self._messages.get(block=not engine.busy)
        except Empty:
            return True
        return False

    def _end(self, reason: BackendError) -> None:
        with self._lock:
            self.ended = reason

    def _drain(self, engine: Engine) -> None:
        """Run the messages that were sent before the end, so that their senders hear of it with everybody else."""
        while not self._messages.empty():
            message = self._messages.get()
            if message is not None:
                message(engine)
