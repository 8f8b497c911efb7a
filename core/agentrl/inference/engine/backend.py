"""The backend ``torch``: a slot-based continuous-batching decoder of our own, one for CPU and CUDA.

Transformers has continuous batching too, and it cannot do what the contract asks: it has no seed and no
stop strings a request, fails all requests with one prompt that does not fit or with temperature 0, serves
KV of old weights to a prompt that equals one in flight, and its step costs several times a small model's
forward. So requests are decoded here, in rows of a dense KV block, through the model's own forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import replace

from pydantic import ValidationError

from agentrl.errors import BackendError, ConfigError, near_matches
from agentrl.inference.contract import BackendContext, Capabilities, Chunk, GenerationRequest, Weights
from agentrl.inference.device import find_device
from agentrl.inference.engine.counters import Counters
from agentrl.inference.engine.delivery import Ticket
from agentrl.inference.engine.engine import Engine
from agentrl.inference.engine.intraop import limit_threads, threads_for
from agentrl.inference.engine.loading import context_length, kv_tokens_in_memory, load_decoder, load_tokenizer
from agentrl.inference.engine.prefixes import PrefixCache
from agentrl.inference.engine.request import Completion, Limits
from agentrl.inference.engine.rows import Rows
from agentrl.inference.engine.settings import TorchSettings
from agentrl.inference.engine.thread import EngineThread
from agentrl.loops import run_in_thread

__all__ = ["TorchBackend"]

_PREFIX_TOKENS = 65536


class TorchBackend:
    """Samples from a Hugging Face model in this process. Every method may be called from any loop and thread."""

    Settings = TorchSettings

    def __init__(self, context: BackendContext, settings: TorchSettings | None = None) -> None:
        self._context = context
        self._settings = settings or _settings(context.options)
        find_device(self._settings.device, "inference.backend.device")
        self._thread: EngineThread | None = None

    async def start(self) -> Capabilities:
        """Load the model; raises ``BackendError`` for one that cannot be loaded or run exactly."""
        if self._thread is None or self._thread.ended is not None:
            self._thread = EngineThread(self._build)
        engine = await asyncio.shield(asyncio.wrap_future(self._thread.ready))
        capabilities = Capabilities(engine.limits.context_length, self._context.max_concurrency)
        if engine.limits.tokenizer is None:
            return replace(capabilities, sampling=capabilities.sampling - {"stop"})
        return capabilities

    async def stop(self) -> None:
        """Cancel what is in flight with ``BackendError`` and free the model. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await run_in_thread(thread.stop)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """Sample one completion; see the contract of ``Backend``."""
        thread, engine = self._running()
        ticket = Ticket()
        completion = Completion.of(request, engine.limits, ticket)
        if not thread.send(lambda engine: engine.submit(completion)):
            raise thread.failure()
        finished = False
        try:
            while not finished:
                chunk = await ticket.next()
                finished = chunk.finish is not None
                yield chunk
        finally:
            if not finished:
                thread.send(lambda engine: engine.cancel(ticket))

    async def update_weights(self, weights: Weights) -> None:
        """Put new weights in place between two steps; raises ``BackendError``, the old ones intact, on a misfit."""
        thread, _ = self._running()
        done: Future[None] = Future()

        def update(engine: Engine) -> None:
            try:
                engine.update(weights)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        if not thread.send(update):
            raise thread.failure()
        await asyncio.shield(asyncio.wrap_future(done))

    def counters(self) -> Counters:
        """What the engine has done since it started."""
        return self._running()[1].snapshot()

    def _running(self) -> tuple[EngineThread, Engine]:
        thread = self._thread
        if thread is None or not thread.ready.done():
            raise BackendError("the torch engine is not running", fix="await start() first")
        return thread, thread.ready.result()

    def _build(self) -> Engine:
        settings, context = self._settings, self._context
        decoder = load_decoder(context.model_folder, settings)
        limit_threads(settings.threads or threads_for(decoder.model))
        limits = Limits(decoder.vocabulary, context_length(decoder, settings), load_tokenizer(context.model_folder))
        affordable = kv_tokens_in_memory(decoder.layout)
        kv_tokens = settings.kv_cache_tokens or affordable
        rows = Rows(decoder.layout, context.max_concurrency, limits.context_length, kv_tokens)
        kept = settings.prefix_cache_tokens
        prefixes = PrefixCache(min(affordable // 4, _PREFIX_TOKENS) if kept is None else kept)
        return Engine(decoder, limits, rows, prefixes, settings.max_batch_tokens, context.version)


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
