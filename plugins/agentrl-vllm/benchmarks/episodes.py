"""Episodes of several turns, run as in training, and what the backend was asked for in them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI

from agentrl.agents.binding import bind_agent
from agentrl.gateway import Gateway, SessionSettings
from agentrl.inference.contract import Backend, GenerationRequest
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.rollout.dispatcher import Dispatcher, FailureBudget, GroupRequest
from agentrl.rollout.episodes import EpisodeRunner
from agentrl.rollout.inline import InlineRunner

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

    from agentrl.inference.contract import Chunk

__all__ = ["AgentTurn", "Recorder", "conversations", "run_episodes"]

GROUP = 8
"""Episodes that have one question, as those of a group."""
MORE = "Is that so? Check each of your steps once more, please, and tell me what is left of it."
_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """A call as the backend had it."""

    request: GenerationRequest
    ids: tuple[int, ...]
    """What was sampled."""


class Recorder:
    """A backend that keeps what another one was asked for.

    ``told`` is what the other one is told of a request's session: which requests belong together.
    """

    def __init__(self, backend: Backend, told: Callable[[str | None], str | None] = lambda session: session) -> None:
        self._backend = backend
        self._told = told
        self._turns: defaultdict[str | None, list[AgentTurn]] = defaultdict(list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """See the contract of ``Backend``."""
        turns = self._turns[request.session]
        asked = replace(request, session=self._told(request.session))
        ids: list[int] = []
        async with aclosing(self._backend.generate(asked)) as chunks:
            async for chunk in chunks:
                ids += chunk.ids
                yield chunk
        turns.append(AgentTurn(request, tuple(ids)))

    def taken(self) -> list[list[AgentTurn]]:
        """The turns of each session, in the order in which sessions began; they are forgotten here."""
        turns = list(self._turns.values())
        self._turns.clear()
        return turns


async def converse(data: dict[str, Any], *, base_url: str, api_key: str, http_client: Any) -> float:
    """Ask, and ask again whatever the answer; each entry of ``tokens`` is the limit of a turn."""
    client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": data["question"]}]
    for tokens in data["tokens"]:
        reply = await client.chat.completions.create(model="policy", messages=messages, max_tokens=tokens)
        answer: Any = reply.choices[0].message.model_dump(exclude_none=True)
        messages += [answer, {"role": "user", "content": MORE}]
    return 1.0


def conversations(
    count: int, *, turns: int, tokens: int, ragged: bool = False, group: int = GROUP, number: int = 0
) -> list[dict[str, Any]]:
    """Tasks of so many turns, each of ``tokens`` tokens, or where they are ``ragged`` of half to three halves of it.

    Questions of other groups, and of another ``number``, differ from their first word on.
    """
    source = random.Random(number)
    lengths = range(tokens // 2, tokens + tokens // 2 + 1) if ragged else [tokens]
    return [
        {
            "question": f"{number}.{index // group}: Ann has {index // group} apples and buys 34 more. How many?",
            "tokens": [source.choice(lengths) for _ in range(turns)],
        }
        for index in range(count)
    ]


async def run_episodes(gateway: Gateway, tasks: Sequence[dict[str, Any]], concurrency: int) -> int:
    """Run an episode of every task, recorded and rewarded as in training, and count the tokens that were sampled."""
    agent = InlineRunner(bind_agent(converse, {}, name="converse"))
    runner = EpisodeRunner(agent, gateway.open_session, None, _DEADLINE_S, max_attempts=1)

    async def finished(episode: Episode) -> None:
        if episode.failure is not None:
            raise RuntimeError(f"an episode failed: {episode.failure}")

    def settings(key: EpisodeKey) -> SessionSettings:
        return SessionSettings(training=True, seed_key=(0, key.phase, 0, key.task, key.sample))

    dispatcher = Dispatcher(runner, concurrency, FailureBudget(0.0, len(tasks)), finished)
    requests = [GroupRequest("train", index, index, data, range(1), settings) for index, data in enumerate(tasks)]
    groups = await dispatcher.collect(requests)
    return sum(call.completion_tokens for group in groups for episode in group.episodes for call in episode.calls)
