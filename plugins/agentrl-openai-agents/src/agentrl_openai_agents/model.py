"""The policy of one episode as the SDK sees it: a model of the chat completions or of the Responses API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agents import (
    ItemHelpers,
    Model,
    ModelBehaviorError,
    ModelResponse,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
)
from agents.items import TResponseOutputItem, TResponseStreamEvent
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseFunctionToolCall

from agentrl import ConfigError

__all__ = ["APIS", "PolicyEndpoint", "PolicyModel", "policy_model"]

APIS = ("chat", "responses")
"""The protocols in which the SDK can ask the policy."""


@dataclass(frozen=True, slots=True)
class PolicyEndpoint:
    """Where the model calls of an episode go: the arguments that agentrl gives an agent's ``run``."""

    base_url: str
    api_key: str
    http_client: Any
    model: str
    api: str = "chat"
    """The protocol in which they are made, one of ``APIS``; the policy reads and writes the same tokens in either."""


class PolicyModel(Model):
    """The model in an episode's ``RunConfig``, where it replaces the models of all agents that take part.

    It is one of the SDK's own models with an account of what passes. ``last_words`` is the last text that the policy
    wrote, whichever agent it was. ``halved`` is the last tool that it called with half a surrogate pair in the
    arguments, which JSON can express and the SDK cannot store. ``failure`` is the first error of a call that is not a
    mistake of the policy. Where such a call was made by an agent that is used as a tool, the SDK turns the error into
    that tool's output, which the policy reads; such an episode must not be trained on, so the error is kept here.
    """

    last_words = ""
    halved: str | None = None
    failure: Exception | None = None

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """See ``agents.Model.get_response``."""
        with self._noting_failure():
            response = await super().get_response(*args, **kwargs)  # type: ignore[safe-super]
        self.note(response.output)
        return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """See ``agents.Model.stream_response``."""
        with self._noting_failure():
            async for event in super().stream_response(*args, **kwargs):  # type: ignore[safe-super]
                yield event

    def note(self, output: Sequence[TResponseOutputItem]) -> None:
        """Take account of what the policy has answered."""
        texts = [ItemHelpers.extract_last_text(item) for item in output]
        self.last_words = next(filter(None, reversed(texts)), self.last_words)
        calls = [item for item in output if isinstance(item, ResponseFunctionToolCall)]
        self.halved = next((call.name for call in calls if not _can_be_written(call.arguments)), self.halved)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except ModelBehaviorError:
            raise
        except Exception as error:
            self.failure = self.failure or error
            raise


class _ChatModel(PolicyModel, OpenAIChatCompletionsModel):
    """The policy through chat completions."""


class _ResponsesModel(PolicyModel, OpenAIResponsesModel):
    """The policy through the Responses API, which the SDK uses by itself."""

    def __init__(self, model: str, client: AsyncOpenAI) -> None:
        super().__init__(model, client)
        create: Callable[..., Awaitable[object]] = client.responses.create

        async def noted(**request: Any) -> object:
            response = await create(**request)
            if isinstance(response, Response):  # And no stream.
                self.note(response.output)  # The SDK drops an answer that was cut off, and the policy's words with it.
            return response

        client.responses.create = noted  # type: ignore[method-assign, assignment]


def policy_model(endpoint: PolicyEndpoint) -> PolicyModel:
    """The policy at ``endpoint``. Raises ``ConfigError`` for a protocol that there is not."""
    client = AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, http_client=endpoint.http_client)
    match endpoint.api:
        case "chat":
            # Strict: what chat completions cannot express is an error; otherwise it would be dropped.
            return _ChatModel(endpoint.model, client, strict_feature_validation=True)
        case "responses":
            return _ResponsesModel(endpoint.model, client)
    raise ConfigError(f"agent.kwargs.api={endpoint.api!r} is no API of the SDK", fix=f"one of {', '.join(APIS)}")


def _can_be_written(arguments: str) -> bool:
    """Whether the texts in ``arguments``, which is JSON, can be encoded as UTF-8."""
    try:
        json.dumps(json.loads(arguments), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        pass  # The SDK passes on as text what is not JSON.
    return True
