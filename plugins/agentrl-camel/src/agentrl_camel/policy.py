"""The policy of one episode, as CAMEL's agents see it: a model backend, for any number of agents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from camel.agents import ChatAgent
from camel.memories import ScoreBasedContextCreator
from camel.messages import OpenAIMessage
from camel.models import BaseModelBackend, ModelManager, OpenAICompatibleModel
from camel.utils import BaseTokenCounter
from openai import AsyncOpenAI, LengthFinishReasonError, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from agentrl import AgentError, ConfigError, PolicyError

__all__ = ["COUNTER", "MOST_CALLS", "Policy", "PolicyBackend", "RoughCounter"]

MOST_CALLS = 16
"""How often an agent that sets no ``max_iteration`` may call the model in one step."""

_TRANSPORT = frozenset({"stream", "stream_options"})
"""Keys of a model's config that change how an answer arrives, and nothing about it."""

_NO_LIMIT = 10**9

_BYTES = 4
"""The bytes of UTF-8 that count as one token, as in English text."""


class Policy:
    """The model behind an episode's session. Make one in each episode, from the arguments that ``run`` is given::

    policy = Policy(base_url, api_key, http_client, model)
    agent = policy.take_over(ChatAgent("Solve the problem.", model=policy.backend(), tools=[calculator]))
    """

    def __init__(self, base_url: str, api_key: str, http_client: Any, model: str = "policy") -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.name = model
        self.client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        self.said = ""
        """The last text that the policy wrote, whichever agent it spoke as."""

    def backend(self, config: Mapping[str, Any] | None = None) -> PolicyBackend:
        """The policy as a model of CAMEL's; ``config`` is what CAMEL calls ``model_config_dict``."""
        return PolicyBackend(self, config or {})

    def take_over(self, agent: ChatAgent, max_iteration: int | None = None) -> ChatAgent:
        """Replace each model of ``agent`` by the policy, keep the models' configs, and return ``agent``.

        CAMEL's own summaries and retries are turned off, so that every call belongs to the conversation. The agent
        stops calling tools after ``max_iteration`` calls in a step: by default its own number, else ``MOST_CALLS``.
        Raises ``AgentError`` for an agent of another episode, and ``ConfigError`` for a ``max_iteration`` below 1.
        """
        if max_iteration is not None and max_iteration < 1:
            raise ConfigError(
                f"max_iteration={max_iteration} leaves no call of the model",
                fix="set agent.kwargs.max_iteration to 1 or more",
            )
        manager = agent.model_backend
        agent.model_backend = ModelManager(
            [self._taken(each) for each in manager.models],
            scheduling_strategy=manager.scheduling_strategy.__name__,
        )
        agent.model_type = agent.model_backend.model_type
        agent.summarize_threshold = None
        agent.retry_attempts = 1
        agent.max_iteration = max_iteration or agent.max_iteration or MOST_CALLS
        creator = agent.memory.get_context_creator()
        if isinstance(creator, ScoreBasedContextCreator):
            creator._token_counter = COUNTER
        return agent

    def _taken(self, model: BaseModelBackend) -> BaseModelBackend:
        if not isinstance(model, PolicyBackend):
            return self.backend(model.model_config_dict)
        if model.policy is not self:
            raise AgentError(
                "the agent already belongs to another episode", fix="let the factory make a new ChatAgent in each call"
            )
        return model


class PolicyBackend(OpenAICompatibleModel):
    """A model backend of CAMEL's whose model is the policy of one episode.

    ``config`` is that of any CAMEL model (``temperature``, ``max_tokens`` and so on); answers do not stream. An answer
    that CAMEL could not handle without raising is a mistake of the policy and raises ``PolicyError``.
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
        """More tokens than any context holds. The gateway refuses what does not fit the policy's."""
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
        """``completion`` itself. Raises ``PolicyError`` for one that CAMEL could not handle."""
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
        """Raise ``PolicyError`` for arguments that are not a JSON object. CAMEL tells the policy of other faults."""
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
        mistake = "the policy did not come to the end of a structured answer"
        return PolicyError(mistake, answer=said, limit="tokens")


def _written(value: Any) -> Any:
    """Messages as they can be sent. CAMEL writes tool arguments anew, and half a surrogate pair, which JSON can escape,
    has no UTF-8; it is spelled out again."""
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
        case list():
            return [_written(item) for item in value]
        case dict():
            return {key: _written(item) for key, item in value.items()}
    return value


class _SyncClient:
    """An ``OpenAI`` client that is made at its first use: few agents call the model from a thread."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url
        self._api_key = api_key

    @cached_property
    def _client(self) -> OpenAI:
        return OpenAI(base_url=self._base_url, api_key=self._api_key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class RoughCounter(BaseTokenCounter):
    """Counts tokens roughly and without a tokenizer, where CAMEL's own counter downloads one.

    CAMEL uses the count only to cut tool results that exceed a limit.
    """

    def count_tokens_from_messages(self, messages: list[OpenAIMessage]) -> int:
        """About the number of tokens of the messages' texts."""
        return sum(len(str(message.get("content"))) // _BYTES + 1 for message in messages)

    def encode(self, text: str) -> list[int]:
        """A number for every four bytes of UTF-8."""
        data = text.encode(errors="surrogatepass")
        return [int.from_bytes(b"\1" + data[start : start + _BYTES]) for start in range(0, len(data), _BYTES)]

    def decode(self, token_ids: list[int]) -> str:
        """The text from which ``encode`` made these numbers."""
        parts = (token.to_bytes(_BYTES + 1).lstrip(b"\0")[1:] for token in token_ids)
        return b"".join(parts).decode(errors="surrogatepass")


COUNTER = RoughCounter()
