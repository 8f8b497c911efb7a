"""The chat backend ``openai``: passes calls on to an endpoint, with retries inside a deadline.

All calls go through one client on an event loop of its own, whatever loop or thread they come from.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.clients import client_library
from agentrl.costs.contract import Usage
from agentrl.errors import BackendError, ConfigError, GatewayError, near_matches, one_line
from agentrl.inference.contract import ChatCapabilities, ChatCompletion, ChatContext, ChatRequest
from agentrl.inference.openai.answers import (
    endpoint_error,
    is_about_the_model,
    is_for_good,
    read_answer,
    read_models,
    reason,
)
from agentrl.inference.openai.endpoint import CONNECT_S, Endpoint, OpenAISettings, make_client
from agentrl.loops import Loop, run_in_thread

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["OpenAIBackend"]

Result = TypeVar("Result")

_START_S = 60.0
_START_RETRIES = 2
"""Few, so that an endpoint that is not there is reported soon."""
_SENT: ContextVar[Counter[str] | None] = ContextVar("agentrl-sent", default=None)
"""Counts the requests of the call that runs in a task."""
_QUESTION = [{"role": "user", "content": "Say hello."}]
_ANSWER_TOKENS = 16


class OpenAIBackend:
    """A model at an endpoint that speaks the chat completions API. May be used from any event loop and thread."""

    Settings = OpenAISettings

    def __init__(self, context: ChatContext, settings: OpenAISettings) -> None:
        """Raises ``ConfigError`` where the environment does not hold the key."""
        self._endpoint = Endpoint.of(settings, context.model, os.environ)
        self._timeout = context.timeout
        self._warn = context.warn
        self._spend = context.spend
        self._max_retries = settings.max_retries
        self._support = ModelSupport()
        self._thread: ClientThread | None = None

    async def start(self) -> ChatCapabilities:
        """Ask one short question, to learn what the model supports; see ``ChatBackend``."""
        self._thread = self._thread or ClientThread(lambda: make_client(self._endpoint, self._timeout, _count))
        seconds = min(_START_S, self._timeout)
        try:
            async with asyncio.timeout(seconds):
                await self._find_out()
        except TimeoutError as error:
            raise self._silent(
                seconds, "check inference.backend.url, and that the endpoint has its model loaded"
            ) from error
        return ChatCapabilities(greedy=self._support.temperature_zero)

    async def stop(self) -> None:
        """End calls in flight with ``BackendError`` and close all connections. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.stop()

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Pass a call on to the endpoint; see ``ChatBackend``."""
        return await self._ask(request, retries=self._max_retries)

    async def _find_out(self) -> None:
        """Ask until the endpoint answers, each time without a field that it refused.

        Raises ``ConfigError`` where it would answer no question.
        """
        question = ChatRequest({"messages": _QUESTION}, 0.0 if self._support.temperature_zero else 1.0, _ANSWER_TOKENS)
        try:
            await self._ask(question, retries=min(_START_RETRIES, self._max_retries))
        except GatewayError as error:
            if is_for_good(error):
                raise ConfigError(error.message, fix=error.fix) from error
            if (less := _without(self._support, error)) != self._support:
                self._support = less
                await self._find_out()
            else:  # It may still accept the agent's calls.
                self._warn(f"the endpoint refused a short question: {error.message}")

    async def _ask(self, request: ChatRequest, *, retries: int) -> ChatCompletion:
        if self._thread is None:
            raise BackendError("the backend openai is not running", fix="await start() first")
        body = request_body(request, self._endpoint.model, self._support)
        return await self._thread.run(lambda client: self._post(client, body, retries))

    async def _post(self, client: AsyncOpenAI, body: dict[str, Any], retries: int) -> ChatCompletion:
        sent = Counter[str]()
        counting, began = _SENT.set(sent), time.monotonic()
        answered = Usage(requests=0)
        try:
            response = await self._response(client, body, retries)
            completion = read_answer(response, self._endpoint)
            answered = Usage.of_answer(completion.answer.get("usage"), time.monotonic() - began)
            return completion
        finally:
            _SENT.reset(counting)
            lost = sent.total() - answered.requests
            self._spend(answered + Usage(requests=lost, unknown=lost))

    async def _response(self, client: AsyncOpenAI, body: dict[str, Any], retries: int) -> Any:
        from openai import APIError, APIStatusError

        kind = client_library().Response
        try:
            async with asyncio.timeout(self._timeout):
                return await client.post("/chat/completions", cast_to=kind, body=body, options={"max_retries": retries})
        except TimeoutError as error:
            raise self._silent(self._timeout, "raise inference.timeout, or lower rollout.concurrency") from error
        except APIError as error:
            explanation = endpoint_error(error, self._endpoint)
            if isinstance(error, APIStatusError) and is_about_the_model(explanation):
                explanation = await self._unknown_model(client, error)
            # Some endpoints repeat the key in what they answer, and a traceback would show it.
            raise explanation from (error if self._endpoint.without_key(str(error)) == str(error) else None)

    def _silent(self, seconds: float, fix: str) -> BackendError:
        return BackendError(f"{self._endpoint.url} did not answer within {seconds:g} s, all tries included", fix=fix)

    async def _unknown_model(self, client: AsyncOpenAI, error: APIStatusError) -> GatewayError:
        endpoint, known = self._endpoint, await self._models(client)
        fix = near_matches(endpoint.model, known) if known else "check inference.backend.url, which often ends in /v1"
        message = f"{endpoint.url} does not take model {endpoint.model!r}: {reason(error, endpoint)}"
        return GatewayError(message, status=error.status_code, code="model_not_found", param="model", fix=fix)

    async def _models(self, client: AsyncOpenAI) -> list[str]:
        """The names of the endpoint's models; none where it does not list them."""
        from openai import APIError

        try:
            async with asyncio.timeout(CONNECT_S):
                return read_models(await client.get("/models", cast_to=client_library().Response))
        except (APIError, TimeoutError):
            return []


def _count() -> None:
    """A request is sent: count it for its call."""
    if (sent := _SENT.get()) is not None:
        sent["requests"] += 1


def _without(support: ModelSupport, error: GatewayError) -> ModelSupport:
    """``support`` without the field that an endpoint has refused."""
    if _names(error, "max_tokens") and support.max_tokens:
        return replace(support, max_tokens=False)
    if _names(error, "temperature"):
        return replace(support, temperature_zero=False)
    return support


def _names(error: GatewayError, field: str) -> bool:
    if error.param is not None:
        return error.param == field
    # In quotes, and not in an object: some endpoints repeat the whole request, in which every field would be found.
    said = re.sub(r"\{.*\}", "", error.message, flags=re.DOTALL)
    return re.search(rf"""(['"`]){field}\1""", said) is not None


@dataclass(frozen=True, slots=True)
class ModelSupport:
    """Which fields the endpoint's model accepts; reasoning models of OpenAI accept neither."""

    temperature_zero: bool = True
    max_tokens: bool = True
    """Whether the limit may be called ``max_tokens``; otherwise only ``max_completion_tokens``."""


def request_body(request: ChatRequest, model: str, support: ModelSupport) -> dict[str, Any]:
    """Returns the JSON body for ``model``: the agent's fields, and defaults for those that it did not set."""
    body = {**request.body, "model": model}
    if body.get("temperature") is None:
        body["temperature"] = request.temperature
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    if limits == [None, None] and request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if not support.max_tokens and limits[1] is None and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")  # Two names of one field.
    return body


class ClientThread:
    """Runs coroutines with one client, for callers on any loop and thread.

    Connections belong to the event loop that they were made on, and callers have several loops, which may be gone
    when the connections are to be closed. So there is one loop for all of them, and one pool.
    """

    def __init__(self, make_client: Callable[[], AsyncOpenAI]) -> None:
        """Start the thread; ``make_client`` is called in it."""
        self._make_client = make_client
        self._client: Future[AsyncOpenAI] = Future()
        self._loop = Loop()
        self._end = asyncio.Event()
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="agentrl-endpoint", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[AsyncOpenAI], Coroutine[Any, Any, Result]]) -> Result:
        """Returns the result of ``work(client)``.

        Cancelling the caller cancels the work; ``stop`` ends it with ``BackendError``.
        """
        client = await asyncio.shield(asyncio.wrap_future(self._client))
        with self._lock:
            if self._ended:
                raise _closed()
            running = asyncio.run_coroutine_threadsafe(work(client), self._loop)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._ended and task is not None and not task.cancelling():
                raise _closed() from None
            raise

    async def stop(self) -> None:
        """Cancel all work, close all connections and end the thread. Safe to call twice."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._end.set)
        await run_in_thread(self._thread.join)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            client = self._make_client()
        except Exception as error:  # A proxy in the environment may need a package that is not installed.
            self._client.set_exception(BackendError(f"no client for the endpoint can be made: {one_line(error)}"))
            await self._end.wait()
            return
        self._client.set_result(client)
        async with client:
            await self._end.wait()
            running = asyncio.all_tasks() - {asyncio.current_task()}
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _closed() -> BackendError:
    return BackendError("the connection to the endpoint has been closed")
