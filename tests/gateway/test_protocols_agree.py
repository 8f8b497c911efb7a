"""One conversation, whatever protocol it is held in: the same ids in the tree, streamed and not, and one gradient."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import anthropic
import openai
import pytest
from openai.types.responses import Response
from tests.algorithms.algorithms import grpo
from tests.learner import models
from tests.learner.reference import forest_gradient

from agentrl.gateway import Session
from agentrl.rollout.contract import Episode, EpisodeKey, Group

SYSTEM = "Calculate."
DESCRIPTION = "Evaluates numbers."
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"n": 12}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "calculate", "arguments": {"n": 34}}\n</tool_call>'
SCRIPT = [
    f"<think>\nFirst the one.\n</think>\n\nLet me see.\n{CALL}",
    f"{CALL}\n{OTHER}",
    "<think>\nThat is it.\n</think>\n\nIt is 408.",
    "Yes. \u00fc",
]
"""What the policy says: with thinking, with one call and with two, and after another question."""
TURNS = ["What is 12 * 34?", ["one"], ["two", "three"], "Sure?"]
"""What it is told before each of these: a text of the user, or the results of its calls."""


@dataclass
class Talk:
    """A conversation in one protocol, as an agent holds it: what the SDK gives is what is sent back."""

    client: openai.AsyncOpenAI | anthropic.AsyncAnthropic
    stream: bool
    history: list[object] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    """The ids of the calls that wait for their results."""


class ChatTalk(Talk):
    tools = [  # noqa: RUF012
        {"type": "function", "function": {"name": "calculate", "description": DESCRIPTION, "parameters": SCHEMA}}
    ]

    async def turn(self, told: str | list[str]) -> None:
        if isinstance(told, str):
            self.history.append({"role": "user", "content": told})
        else:
            self.history += [
                {"role": "tool", "tool_call_id": call, "content": text}
                for call, text in zip(self.calls, told, strict=True)
            ]
        messages = [{"role": "system", "content": SYSTEM}, *self.history]
        asked = {"model": "any", "messages": messages, "tools": self.tools}
        if self.stream:
            message = await self._streamed(asked)
        else:
            message = (await self.client.chat.completions.create(**asked)).choices[0].message.model_dump()
        self.history.append(message)
        self.calls = [call["id"] for call in message.get("tool_calls") or ()]

    async def _streamed(self, asked: dict) -> dict:
        message: dict = {"role": "assistant", "content": "", "tool_calls": []}
        async for chunk in await self.client.chat.completions.create(**asked, stream=True):
            delta = chunk.choices[0].delta.model_dump(exclude_none=True)
            for name in ("content", "reasoning_content"):
                if name in delta:
                    message[name] = message.get(name, "") + delta[name]
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append(call)
                else:
                    message["tool_calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
        return message


class ResponsesTalk(Talk):
    tools = [  # noqa: RUF012
        {"type": "function", "name": "calculate", "parameters": SCHEMA, "strict": False, "description": DESCRIPTION}
    ]

    def state(self) -> dict:
        """What lets the gateway know of the conversation so far: here the whole of it, thinking in handles."""
        return {"input": self.history, "store": False, "include": ["reasoning.encrypted_content"]}

    async def turn(self, told: str | list[str]) -> None:
        if isinstance(told, str):
            self.history.append({"role": "user", "content": told})
        else:
            self.history += [
                {"type": "function_call_output", "call_id": call, "output": text}
                for call, text in zip(self.calls, told, strict=True)
            ]
        asked = {"model": "any", "instructions": SYSTEM, "tools": self.tools, **self.state()}
        answer = await self.client.responses.create(**asked, stream=self.stream)
        if self.stream:
            *_, last = [event async for event in answer]
            answer = last.response
        self.kept(answer)
        self.calls = [item.call_id for item in answer.output if item.type == "function_call"]

    def kept(self, answer: Response) -> None:
        self.history += [item.model_dump() for item in answer.output]


class StoredTalk(ResponsesTalk):
    """Only what is new is sent: the gateway keeps the rest."""

    previous: str | None = None

    def state(self) -> dict:
        return {"input": self.history, "previous_response_id": self.previous}

    def kept(self, answer: Response) -> None:
        self.previous, self.history = answer.id, []


class MessagesTalk(Talk):
    tools = [{"name": "calculate", "description": DESCRIPTION, "input_schema": SCHEMA}]  # noqa: RUF012

    async def turn(self, told: str | list[str]) -> None:
        content: object = told
        if not isinstance(told, str):
            content = [
                {"type": "tool_result", "tool_use_id": call, "content": text}
                for call, text in zip(self.calls, told, strict=True)
            ]
        self.history.append({"role": "user", "content": content})
        asked = {"model": "any", "max_tokens": 300, "system": SYSTEM, "messages": self.history, "tools": self.tools}
        if self.stream:
            async with self.client.messages.stream(**asked) as stream:
                answer = await stream.get_final_message()
        else:
            answer = await self.client.messages.create(**asked)
        self.history.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
        self.calls = [block.id for block in answer.content if block.type == "tool_use"]


PROTOCOLS: dict[str, type[Talk]] = {
    "chat": ChatTalk,
    "responses": ResponsesTalk,
    "stored responses": StoredTalk,
    "messages": MessagesTalk,
}


@pytest.fixture
def held(in_process, open_session, backend) -> Callable[[str, bool], Session]:
    """Holds the conversation in a protocol, and returns its session."""

    def held(protocol: str, stream: bool) -> Session:
        session = open_session()
        backend.says(*SCRIPT)
        fields = {"base_url": session.base_url, "api_key": session.api_key, "http_client": in_process.http_client()}
        make = anthropic.AsyncAnthropic if protocol == "messages" else openai.AsyncOpenAI

        async def talk() -> None:
            async with make(**fields, max_retries=0) as client:
                conversation = PROTOCOLS[protocol](client, stream)
                for told in TURNS:
                    await conversation.turn(told)

        asyncio.run(talk())
        return session

    return held


def recorded(session: Session) -> list[object]:
    """What is recorded of a session, apart from ids that are random."""
    numbers = {call.id: number for number, call in enumerate(session.calls)}
    spans = [
        (span.ids, span.sampled and (numbers[span.sampled.call], span.sampled.logprobs)) for span in session.tree.spans
    ]
    calls = [
        (call.parent and numbers[call.parent], call.fork_reason, call.finish_reason, call.delivered, said(call.message))
        for call in session.calls
    ]
    return [spans, calls]


def said(message: dict) -> tuple:
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    return message.get("content") or "", message.get("reasoning_content") or "", calls


def gradient(sessions: list[Session], model: object) -> dict:
    """The gradient of a group of which the first episode was better."""
    episodes = tuple(
        Episode(EpisodeKey("train", 0, 0, sample), {}, "rewarded", 1.0 - sample, calls=session.calls, tree=session.tree)
        for sample, session in enumerate(sessions)
    )
    return forest_gradient(models.takes_forest(model), [Group(0, episodes)], grpo())[1]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_conversation_is_recorded_as_through_chat(held, protocol, stream):
    through_chat, through_it = held("chat", False), held(protocol, stream)
    assert recorded(through_it) == recorded(through_chat)
    assert [call.parent for call in through_it.calls[1:]] == [call.id for call in through_it.calls[:-1]]


def test_the_gradient_is_the_same(held, chat_tokenizer, monkeypatch):
    monkeypatch.setattr(models, "VOCABULARY", len(chat_tokenizer))
    model = models.qwen3(layers=1)
    expected = gradient([held("chat", False), held("chat", False)], model)
    assert any(value.any() for value in expected.values())
    for protocol in PROTOCOLS:
        given = gradient([held(protocol, False), held(protocol, True)], model)
        assert all((given[name] == expected[name]).all() for name in expected), protocol
