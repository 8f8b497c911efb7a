"""The policy of one episode as the SDK sees it: a model of the chat completions API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agents import ItemHelpers, ModelBehaviorError, ModelResponse, OpenAIChatCompletionsModel
from agents.items import TResponseStreamEvent
from openai import AsyncOpenAI
from openai.types.responses import ResponseFunctionToolCall

__all__ = ["PolicyEndpoint", "PolicyModel"]


@dataclass(frozen=True, slots=True)
class PolicyEndpoint:
    """Where the model calls of an episode go: the arguments that agentrl gives an agent's ``run``."""

    base_url: str
    api_key: str
    http_client: Any
    model: str


class PolicyModel(OpenAIChatCompletionsModel):
    """The model in an episode's ``RunConfig``, where it replaces the models of all agents that take part.

    ``last_words`` is the last text that the policy wrote, whichever agent it was. ``halved`` is the last tool that it
    called with half a surrogate pair in the arguments, which JSON can express and the SDK cannot store. ``failure`` is
    the first error of a call that is not a mistake of the policy. Where such a call was made by an agent that is used
    as a tool, the SDK turns the error into that tool's output, which the policy reads; such an episode must not be
    trained on, so the error is kept here.
    """

    def __init__(self, endpoint: PolicyEndpoint) -> None:
        client = AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, http_client=endpoint.http_client)
        # Strict: what chat completions cannot express is an error; otherwise it would be dropped.
        super().__init__(endpoint.model, client, strict_feature_validation=True)
        self.last_words = ""
        self.halved: str | None = None
        self.failure: Exception | None = None

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """See ``agents.Model.get_response``."""
        with self._noting_failure():
            response = await super().get_response(*args, **kwargs)
        texts = [ItemHelpers.extract_last_text(item) for item in response.output]
        self.last_words = next(filter(None, reversed(texts)), self.last_words)
        calls = [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]
        self.halved = next((call.name for call in calls if not _can_be_written(call.arguments)), self.halved)
        return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """See ``agents.Model.stream_response``."""
        with self._noting_failure():
            async for event in super().stream_response(*args, **kwargs):
                yield event

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except ModelBehaviorError:
            raise
        except Exception as error:
            self.failure = self.failure or error
            raise


def _can_be_written(arguments: str) -> bool:
    """Whether the texts in ``arguments``, which is JSON, can be encoded as UTF-8."""
    try:
        json.dumps(json.loads(arguments), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    except (ValueError, RecursionError):
        pass  # The SDK passes on as text what is not JSON.
    return True
