"""The chat backend ``openai``: passes calls on to an endpoint, with retries inside a deadline."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentrl.clients import client_library
from agentrl.errors import BackendError, ConfigError, GatewayError, near_matches
from agentrl.inference.contract import ChatCapabilities, ChatCompletion, ChatContext, ChatRequest
from agentrl.inference.openai.answers import read_answer, read_models
from agentrl.inference.openai.client import CONNECT_S, make_client
from agentrl.inference.openai.endpoint import Endpoint
from agentrl.inference.openai.failures import explained, is_about_the_model, is_for_good, reason
from agentrl.inference.openai.requests import Takes, request_body
from agentrl.inference.openai.settings import OpenAISettings
from agentrl.inference.openai.thread import ClientThread

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["OpenAIBackend"]

_START_S = 60.0
_START_RETRIES = 2
"""An endpoint that is not there is told of soon."""
_QUESTION = [{"role": "user", "content": "Say hello."}]
_ANSWER_TOKENS = 16


class OpenAIBackend:
    """A model at an endpoint that speaks the chat completions API. Use it from any loop and thread."""

    Settings = OpenAISettings

    def __init__(self, context: ChatContext, settings: OpenAISettings) -> None:
        """Raises ``ConfigError`` where the environment does not hold the key."""
        self._endpoint = Endpoint.of(settings, context.model, os.environ)
        self._timeout = context.timeout
        self._warn = context.warn
        self._max_retries = settings.max_retries
        self._takes = Takes()
        self._thread: ClientThread | None = None

    async def start(self) -> ChatCapabilities:
        """Ask one short question, to learn what the model takes; see the contract of ``ChatBackend``."""
        self._thread = self._thread or ClientThread(lambda: make_client(self._endpoint, self._timeout))
        seconds = min(_START_S, self._timeout)
        try:
            async with asyncio.timeout(seconds):
                await self._find_out()
        except TimeoutError as error:
            raise self._silent(
                seconds, "check inference.backend.url, and that the endpoint has its model loaded"
            ) from error
        return ChatCapabilities(greedy=self._takes.temperature_zero)

    async def stop(self) -> None:
        """Cancel what is in flight with ``BackendError`` and close all connections. Safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.stop()

    async def complete(self, request: ChatRequest) -> ChatCompletion:
        """Pass a call on; see the contract of ``ChatBackend``."""
        return await self._ask(request, retries=self._max_retries)

    async def _find_out(self) -> None:
        """Raises ``ConfigError`` where no question would be answered; what it does not take is left out."""
        question = ChatRequest({"messages": _QUESTION}, 0.0 if self._takes.temperature_zero else 1.0, _ANSWER_TOKENS)
        try:
            await self._ask(question, retries=min(_START_RETRIES, self._max_retries))
        except GatewayError as error:
            if is_for_good(error):
                raise ConfigError(error.message, fix=error.fix) from error
            if (less := _without(self._takes, error)) != self._takes:
                self._takes = less
                await self._find_out()
            else:  # It may not mind about the agent's calls.
                self._warn(f"the endpoint refused a short question: {error.message}")

    async def _ask(self, request: ChatRequest, *, retries: int) -> ChatCompletion:
        if self._thread is None:
            raise BackendError("the backend openai is not running", fix="await start() first")
        body = request_body(request, self._endpoint.model, self._takes)
        return await self._thread.run(lambda client: self._post(client, body, retries))

    async def _post(self, client: AsyncOpenAI, body: dict[str, Any], retries: int) -> ChatCompletion:
        from openai import APIError, APIStatusError

        kind = client_library().Response
        try:
            async with asyncio.timeout(self._timeout):
                response = await client.post(
                    "/chat/completions", cast_to=kind, body=body, options={"max_retries": retries}
                )
        except TimeoutError as error:
            raise self._silent(self._timeout, "raise inference.timeout, or lower rollout.concurrency") from error
        except APIError as error:
            explanation = explained(error, self._endpoint)
            if isinstance(error, APIStatusError) and is_about_the_model(explanation):
                explanation = await self._unknown_model(client, error)
            # Some endpoints repeat the key in what they answer, and a traceback would show it.
            raise explanation from (error if self._endpoint.without_key(str(error)) == str(error) else None)
        return read_answer(response, self._endpoint)

    def _silent(self, seconds: float, fix: str) -> BackendError:
        return BackendError(f"{self._endpoint.url} did not answer within {seconds:g} s, all tries included", fix=fix)

    async def _unknown_model(self, client: AsyncOpenAI, error: APIStatusError) -> GatewayError:
        endpoint, known = self._endpoint, await self._models(client)
        fix = near_matches(endpoint.model, known) if known else "check inference.backend.url, which often ends in /v1"
        message = f"{endpoint.url} does not take model {endpoint.model!r}: {reason(error, endpoint)}"
        return GatewayError(message, status=error.status_code, code="model_not_found", param="model", fix=fix)

    async def _models(self, client: AsyncOpenAI) -> list[str]:
        """The endpoint's models, as far as it lists them."""
        from openai import APIError

        try:
            async with asyncio.timeout(CONNECT_S):
                return read_models(await client.get("/models", cast_to=client_library().Response))
        except (APIError, TimeoutError):
            return []


def _without(takes: Takes, error: GatewayError) -> Takes:
    """``takes`` less the field that an endpoint has refused."""
    if _names(error, "max_tokens") and takes.max_tokens:
        return replace(takes, max_tokens=False)
    if _names(error, "temperature"):
        return replace(takes, temperature_zero=False)
    return takes


def _names(error: GatewayError, field: str) -> bool:
    if error.param is not None:
        return error.param == field
    # In quotes, and in no object: some endpoints repeat the whole request, whose every field would be found.
    said = re.sub(r"\{.*\}", "", error.message, flags=re.DOTALL)
    return re.search(rf"""(['"`]){field}\1""", said) is not None
