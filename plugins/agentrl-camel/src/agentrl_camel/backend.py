"""The policy as CAMEL's agents see it: a model backend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from camel.messages import OpenAIMessage
from camel.models import OpenAICompatibleModel
from openai import LengthFinishReasonError, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from agentrl.errors import PolicyError, encodable
from agentrl_camel.counting import COUNTER

if TYPE_CHECKING:
    from agentrl_camel.policy import Policy

__all__ = ["PolicyBackend"]

_TRANSPORT = frozenset({"stream", "stream_options"})
"""Keys of a model's config that change how an answer arrives, and nothing about it."""

_NO_LIMIT = 10**9


class PolicyBackend(OpenAICompatibleModel):
    """A backend whose model is the policy of one episode.

    ``config`` is as of any CAMEL model (``temperature``, ``max_tokens`` …); answers do not stream. What would make
    CAMEL raise an exception of Python's, and nothing else, is a mistake of the policy: ``PolicyError``.
    """

    def __init__(self, policy: Policy, config: Mapping[str, Any]) -> None:
        super().__init__(
            policy.name,
            {key: value for key, value in config.items() if key not in _TRANSPORT},
            api_key=policy.api_key,
            url=policy.base_url,
            token_counter=COUNTER,
            client=_SyncClient(policy.base_url, policy.api_key),
            async_client=policy.client,
        )
        self.policy = policy

    @property
    def token_limit(self) -> int:
        """More than any context holds: what does not fit the policy's, the gateway refuses."""
        return _NO_LIMIT

    async def _arun(
        self,
        messages: list[OpenAIMessage],
        response_format: type[BaseModel] | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> ChatCompletion:
        try:
            completion = await super()._arun(_written(messages), response_format, tools)
        except LengthFinishReasonError as error:
            raise self._cut(error) from error
        return self._heard(completion)

    def _run(
        self,
        messages: list[OpenAIMessage],
        response_format: type[BaseModel] | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> ChatCompletion:
        try:
            completion = super()._run(_written(messages), response_format, tools)
        except LengthFinishReasonError as error:
            raise self._cut(error) from error
        return self._heard(completion)

    def _heard(self, completion: Any) -> ChatCompletion:
        """The completion itself. Raises ``PolicyError`` where CAMEL could make nothing of it."""
        heard: ChatCompletion = completion
        message = heard.choices[0].message
        spoken = (message.content or "").strip()
        self.policy.said = spoken or self.policy.said
        if not (spoken or message.tool_calls):
            raise PolicyError("the policy said nothing", answer=self.policy.said)
        for call in message.tool_calls or ():
            if call.type == "function":
                self._check_arguments(call.function.name, call.function.arguments)
        return heard

    def _check_arguments(self, tool: str, arguments: str) -> None:
        """What else is wrong with a call, CAMEL tells the policy, which may go on."""
        try:
            parsed = json.loads(arguments)
        except ValueError as error:
            fault = f"the policy called {tool!r} with arguments that are no JSON: {arguments!r:.80}"
            raise PolicyError(fault, answer=self.policy.said) from error
        if not isinstance(parsed, dict):
            fault = f"the policy called {tool!r} with arguments that are no JSON object: {arguments!r:.80}"
            raise PolicyError(fault, answer=self.policy.said)

    def _cut(self, error: LengthFinishReasonError) -> PolicyError:
        said = error.completion.choices[0].message.content or self.policy.said
        return PolicyError("the policy did not come to the end of a structured answer", answer=said)


def _written(value: Any) -> Any:
    """Messages as they can be sent: CAMEL writes arguments anew, where half a character was an escape."""
    match value:
        case str():
            return encodable(value)
        case list():
            return [_written(item) for item in value]
        case dict():
            return {key: _written(item) for key, item in value.items()}
    return value


class _SyncClient:
    """An ``OpenAI`` that is made when something calls the model from a thread, which few agents ever do."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url
        self._api_key = api_key

    @cached_property
    def _client(self) -> OpenAI:
        return OpenAI(base_url=self._base_url, api_key=self._api_key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
